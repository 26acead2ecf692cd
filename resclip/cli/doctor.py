"""`resclip doctor`: what this machine has, what each op uses on it and why, as text to paste into a report."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform

import torch
from tabulate import tabulate

from resclip.evaluation.distributed import machine_name
from resclip.version import __version__
from resclip_kernels import JUDGE, TRIALS, cpu_kind, explain, linear_obstacle, multiplies_bfloat16

PACKAGES = ("triton", "open_clip_torch", "timm", "transformers", "numpy")
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Variables of the environment that say how threads wait."""
DTYPES = {"cuda": (torch.float16, torch.bfloat16, torch.float32)}
"""By kind of device, the dtypes that are asked about; float32 alone elsewhere."""


def show_doctor(_: argparse.Namespace) -> int:
    """Print versions, devices, and a row for each op, device and dtype."""
    print(f"resclip {__version__}, Python {platform.python_version()}, {platform.platform()}")
    versions = [f"torch {torch.__version__}", *(f"{name} {version_of(name)}" for name in PACKAGES)]
    print(", ".join(versions))
    cpu = f"{machine_name(torch.device('cpu'))} ({cpu_kind()})"
    print(f"cpu: {cpu}, {torch.get_num_threads()} threads")
    print(describe_cpu())
    for device in gpus():
        print(f"{device}: {describe(device)}")
    if not gpus():
        print("no GPU: torch finds none")
    rows = [
        row(op, device, dtype)
        for device in [torch.device("cpu"), *gpus()]
        for dtype in DTYPES.get(device.type, (torch.float32,))
        for op in sorted(TRIALS)
    ]
    print()
    print(tabulate(rows, headers=("op", "device", "dtype", '"auto" uses', "error", "why")))
    if JUDGE.is_off():
        print("\nThe kernels are not compared with torch: RESCLIP_SKIP_KERNEL_CHECK is set.")
    elif gpus():
        print(f"\n{where_verdicts_are()}")
    return 0


def where_verdicts_are() -> str:
    """A sentence on the file of verdicts."""
    try:
        return f"Verdicts on the kernels are kept in {JUDGE.file()}; remove it to compare anew."
    except RuntimeError:
        return (
            "Verdicts on the kernels are not kept, as there is no home folder: "
            "set RESCLIP_KERNEL_VERDICTS to a file."
        )


def row(op: str, device: torch.device, dtype: torch.dtype) -> tuple[str, ...]:
    """One op on one device in one dtype."""
    implementation, reason = explain(op, device, dtype)
    verdict = JUDGE.known(op, device, dtype) if device.type == "cuda" else None
    error = "-" if verdict is None or verdict.error is None else f"{verdict.error:.1e}"
    name = str(dtype).removeprefix("torch.")
    return op, str(device), name, implementation.value, error, reason


def gpus() -> list[torch.device]:
    """The CUDA or HIP devices that torch finds."""
    return [torch.device("cuda", number) for number in range(torch.cuda.device_count())]


def describe_cpu() -> str:
    """How a CPU multiplies, and how its threads wait, a line each."""
    why_not = linear_obstacle()
    layers = "oneDNN" if why_not is None else f"PyTorch's own, since {why_not}"
    bfloat16 = {
        True: "multiplied by the CPU's own instructions: faster than float32",
        False: "the CPU has no instructions for it: slower than float32",
        None: "this system does not say whether the CPU multiplies it",
    }[multiplies_bfloat16()]
    waiting = [f"{name}={os.environ[name]}" for name in WAITING if name in os.environ]
    return (
        f"linear layers in float32: {layers}\nbfloat16: {bfloat16}\n"
        f"threads wait for each other: {', '.join(waiting) or 'as by default'}"
    )


def describe(device: torch.device) -> str:
    """A GPU's name, compute capability and memory."""
    properties = torch.cuda.get_device_properties(device)
    runtime = f"HIP {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
    return (
        f"{properties.name}, compute capability {properties.major}.{properties.minor}, "
        f"{properties.total_memory / 2**30:.0f} GiB, {runtime}"
    )


def version_of(package: str) -> str:
    """A package's version, or that it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"

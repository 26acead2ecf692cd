"""Whether an op's Triton kernels can be trusted on a device: compared once with the torch implementation.

"auto" asks here before it takes Triton for the first time on a device in a dtype. A verdict is kept in a file for the
device's name and compute capability and the versions of torch, triton and this package, so that the comparison, which
compiles kernels, runs once after an installation. On a machine without GPU nothing is compared and no file is read.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import math
import os
import secrets
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SKIP = "RESCLIP_SKIP_KERNEL_CHECK"
"""Environment variable that turns the comparison off: 1 to trust the kernels unseen."""
FILE = "RESCLIP_KERNEL_VERDICTS"
"""Environment variable with the path of the file of verdicts."""
YES = ("1", "true", "on", "yes")
FLOAT32 = "RESCLIP_FLOAT32"
"""Environment variable that says how kernels form products of float32 on NVIDIA's GPUs."""
FLOAT32_PRODUCTS = ("tf32x3", "ieee")
KERNELS = 3
"""Counts designs of the kernels: a verdict of another one says nothing."""
TOLERANCES = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest ‖triton − torch‖ / ‖torch‖ by dtype: some ten times what rounding gives, far less than a wrong formula."""
MAX_FLIPPED = 0.05
"""Largest share of integers that differ, which rounding decides where two scores are nearly equal."""

Trial = Callable[[torch.device, torch.dtype, str], Sequence[Tensor | None]]
"""An op run on small inputs made on a device in a dtype, by the implementation named; the same inputs each time."""
TRIALS: dict[str, Trial] = {}
"""The trials of all ops that have kernels, by the op's name."""


class KernelWarning(UserWarning):
    """An op's Triton kernels were found unfit for this device, and torch is used in their place."""


@dataclass(frozen=True)
class Verdict:
    """What the comparison of one op on one device in one dtype found."""

    error: float | None
    """‖triton − torch‖ / ‖torch‖, or the share of integers that differ if that is larger; None if nothing came."""
    reason: str | None
    """Why the kernels are not used; None where they are."""
    seconds: float
    """Time that the comparison took, with compilation."""
    lasts: bool = True
    """Whether it holds for later processes too; memory that was short may be there then."""

    def is_sound(self) -> bool:
        """Whether the values are of their types, as those of a file need not be."""
        return (
            isinstance(self.error, float | int | None)
            and isinstance(self.reason, str | None)
            and isinstance(self.seconds, float | int)
            and isinstance(self.lasts, bool)
        )


def trial(op: str) -> Callable[[Trial], Trial]:
    """Decorates an op's trial."""

    def register(function: Trial) -> Trial:
        TRIALS[op] = function
        return function

    return register


def sample(device: torch.device, dtype: torch.dtype, *shape: int, seed: int = 0) -> Tensor:
    """Normal numbers, the same on every device up to the dtype's rounding."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(device, dtype)


class Judge:
    """The verdicts of this process, those of the file among them.

    Args:
        path: of the file; None for the user's cache folder, or what the environment names.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.enabled = True
        self.verdicts: dict[str, Verdict] = {}
        self.warned: set[str] = set()
        self.is_read = False
        self.lock = threading.RLock()

    def obstacle(self, op: str, tensors: Sequence[Tensor | None]) -> str | None:
        """Why the op's kernels are not to be used for these tensors; None where they are.

        Runs the comparison if there is no verdict yet, and warns once if that speaks against the kernels.
        """
        device, dtype = device_and_dtype(tensors)
        if self.is_off():
            return None
        # A comparison waits for the device and compiles, which a graph that is being captured cannot hold.
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return None
        return self.verdict(op, device, dtype).reason

    def is_off(self) -> bool:
        """Whether kernels are trusted unseen."""
        return not self.enabled or os.environ.get(SKIP, "").strip().lower() in YES

    def verdict(self, op: str, device: torch.device, dtype: torch.dtype) -> Verdict:
        """The verdict that is known, or that of a comparison now."""
        key = key_of(op, device, dtype)
        with self.lock:
            self.read()
            if key not in self.verdicts:
                self.verdicts[key] = compare(op, device, dtype)
                self.write()
            verdict = self.verdicts[key]
            if verdict.reason is not None and key not in self.warned:
                self.warned.add(key)
                warnings.warn(
                    f"{verdict.reason}; torch is used instead. Please report this together with what "
                    "`resclip doctor` prints",
                    KernelWarning,
                    stacklevel=2,
                )
            return verdict

    def known(self, op: str, device: torch.device, dtype: torch.dtype) -> Verdict | None:
        """The verdict, if there is one."""
        with self.lock:
            self.read()
            return self.verdicts.get(key_of(op, device, dtype))

    def file(self) -> Path:
        """Where verdicts are kept; RuntimeError where nothing names a file and there is no home folder."""
        if self.path is not None:
            return self.path
        named = os.environ.get(FILE)
        if named:
            return Path(named)
        cache = os.environ.get("XDG_CACHE_HOME")
        return (Path(cache) if cache else Path.home() / ".cache") / "resclip" / "kernels.json"

    def read(self) -> None:
        """Take over the file's verdicts, once; a file that cannot be read counts as none."""
        if self.is_read:
            return
        self.is_read = True
        for key, verdict in self.stored().items():
            self.verdicts.setdefault(key, verdict)

    def stored(self) -> dict[str, Verdict]:
        """The file's verdicts."""
        found = {}
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError, RuntimeError):
            for key, fields in json.loads(self.file().read_text(encoding="utf-8")).items():
                verdict = Verdict(**fields)
                if verdict.is_sound():
                    found[key] = verdict
        return found

    def write(self) -> None:
        """Put all verdicts into the file, at once; where that is not possible they hold for this process alone."""
        with contextlib.suppress(OSError, RuntimeError):
            path = self.file()
            path.parent.mkdir(parents=True, exist_ok=True)
            # Another process may have written meanwhile.
            verdicts = {**self.stored(), **self.verdicts}
            text = json.dumps(
                {key: asdict(one) for key, one in verdicts.items() if one.lasts}, indent=1
            )
            temporary = path.with_name(f".resclip-{secrets.token_hex(8)}.tmp")
            try:
                temporary.write_text(text, encoding="utf-8")
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)


JUDGE = Judge()
"""The process's verdicts."""


def check_kernels_at_first_use(enabled: bool) -> None:
    """Whether "auto" compares an op's Triton kernels with torch before it first takes them on a device.

    It does by default. The environment variable RESCLIP_SKIP_KERNEL_CHECK=1 turns it off as well.

    Raises:
        TypeError: no bool.
    """
    if not isinstance(enabled, bool):
        raise TypeError(f"enabled must be True or False; got {enabled!r}")
    JUDGE.enabled = enabled


def compare(op: str, device: torch.device, dtype: torch.dtype) -> Verdict:
    """Run an op by both implementations and judge the difference."""
    start = time.perf_counter()
    name = str(dtype).removeprefix("torch.")
    where = f"on {device_name(device)} in {name}"
    limit = TOLERANCES.get(dtype, TOLERANCES[torch.float32])
    try:
        with torch.no_grad():
            expected = list(TRIALS[op](device, dtype, "torch"))
            came = list(TRIALS[op](device, dtype, "triton"))
            error = largest_error(came, expected, limit)
    # Whatever a compiler or a driver raises, torch can still do the work.
    except Exception as problem:  # noqa: BLE001
        first = str(problem).strip().partition("\n")[0]
        reason = f"the Triton kernels of {op} fail {where} ({type(problem).__name__}: {first})"
        is_passing = isinstance(problem, (MemoryError, torch.OutOfMemoryError))
        return Verdict(None, reason, time.perf_counter() - start, not is_passing)
    seconds = time.perf_counter() - start
    if error <= limit:
        return Verdict(error, None, seconds)
    return Verdict(
        error,
        f"the Triton kernels of {op} are {error:.1%} off torch's result {where}, and {limit:.1%} is the most expected",
        seconds,
    )


def largest_error(
    came: Sequence[Tensor | None], expected: Sequence[Tensor | None], limit: float
) -> float:
    """The largest relative error of a pair of tensors; inf where one is missing, of another shape or not finite.

    Integers that differ are counted instead, in units in which `MAX_FLIPPED` of them are as bad as `limit`.
    """
    worst = 0.0
    for one, other in zip(came, expected, strict=True):
        if one is None or other is None:
            if one is not other:
                return math.inf
            continue
        if one.shape != other.shape:
            return math.inf
        if not other.is_floating_point():
            share = (one != other).float().mean().item()
            worst = max(worst, share * limit / MAX_FLIPPED)
            continue
        wide = other.double()
        error = ((one.double() - wide).norm() / wide.norm().clamp(min=1e-30)).item()
        worst = max(worst, error if math.isfinite(error) else math.inf)
    return worst


def device_and_dtype(tensors: Sequence[Tensor | None]) -> tuple[torch.device, torch.dtype]:
    """Where the first tensor is, and the first floating dtype; float32 for an op on labels alone."""
    present = [tensor for tensor in tensors if tensor is not None]
    floating = [tensor.dtype for tensor in present if tensor.is_floating_point()]
    return present[0].device, floating[0] if floating else torch.float32


def device_name(device: torch.device) -> str:
    """The maker's name of a GPU, or the device as torch writes it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def key_of(op: str, device: torch.device, dtype: torch.dtype) -> str:
    """What a verdict holds for."""
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else "-"
    parts: Mapping[str, Any] = {
        "op": op,
        "dtype": str(dtype).removeprefix("torch."),
        "device": device_name(device),
        "capability": capability,
        "torch": torch.__version__,
        "triton": version_of("triton"),
        "resclip": version_of("resclip"),
        "kernels": KERNELS,
        "float32": float32_products(),
    }
    return "; ".join(f"{name} {value}" for name, value in parts.items())


def float32_products() -> str:
    """What RESCLIP_FLOAT32 asks for; ValueError where it is no way to form them."""
    wanted = os.environ.get(FLOAT32, FLOAT32_PRODUCTS[0])
    if wanted not in FLOAT32_PRODUCTS:
        valid = " or ".join(FLOAT32_PRODUCTS)
        raise ValueError(f"{FLOAT32} must be {valid}; got {wanted!r}: set it so, or unset it")
    return wanted


def version_of(package: str) -> str:
    """A package's version, or "-"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "-"

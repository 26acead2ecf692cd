"""Compile every kernel with other versions of Triton, through each one's own runtime: no GPU is needed.

Versions: the oldest that the package allows, the one installed, and the newest there is; others by `--versions`. They
are installed apart from everything, into build/triton, from a package index; `--folder` names a folder that holds
installations already, each under its version. A driver that only names a target stands in for the GPU's, so that
arguments are bound, specialised and compiled as by a launch. It fails where a kernel does not compile, or spills more
than `known_spills` lists.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.reporting import ROOT
from resclip_kernels.dispatch import MIN_TRITON, dotted

FOLDER = ROOT / "build/triton"
VERSIONS = "oldest,installed,newest"
TARGETS = "sm_80,sm_90"


@dataclass
class Outcome:
    """What one version makes of all kernels for one target."""

    triton: str
    target: str
    wanted: int = 0
    compiled: int = 0
    spilling: int = 0
    """Of those compiled, listed ones among them."""
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        count = f"{self.compiled} of {self.wanted} kernels compiled, {self.spilling} spill"
        return f"triton {self.triton}, {self.target}: {count}, {len(self.problems)} problems"


class NoVersionError(Exception):
    """A version of Triton that cannot be had; the message says why."""


def requirement(version: str) -> str:
    """What pip is asked for: "oldest", "newest", or a version's first numbers."""
    oldest = dotted(MIN_TRITON)
    if version == "newest":
        return f"triton>={oldest}"
    return f"triton=={oldest if version == 'oldest' else version}.*"


def installation(version: str, folder: Path) -> Path | None:
    """The folder to put in front of Python's path; None for the installed version.

    Raises:
        NoVersionError: pip could not install it.
    """
    if version == "installed":
        return None
    place = folder / version
    # The newest may be another one by now.
    if version != "newest" and (place / "triton").is_dir():
        return place
    place.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    done = subprocess.run(
        [*pip, "--no-deps", "--upgrade", "--target", place, requirement(version)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"pip ended with status {done.returncode}"]
        raise NoVersionError(f"cannot install {requirement(version)} into {place}: {lines[-1]}")
    return place


def compile_with(place: Path | None, target: str) -> Outcome:
    """Compile in a process of its own, which this version of Triton may end."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    path = [str(place)] if place else []
    path += [str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(path)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.kernels_matrix", "--worker", target],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if done.returncode == 0:
        return Outcome(**json.loads(done.stdout.splitlines()[-1]))
    lines = done.stderr.strip().splitlines() or ["without a word"]
    ended = f"the process ended with status {done.returncode}: {lines[-1]}"
    return Outcome(place.name if place else "installed", target, problems=[ended])


class NamedTarget:
    """Stands in for Triton's driver of a GPU: it says what to compile for, and launches nothing."""

    binary_ext = "cubin"
    launcher_cls = None
    utils = None

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, *_: Any) -> int:
        return 0

    def set_current_device(self, *_: Any) -> None:
        """There is one."""

    def get_device_capability(self, *_: Any) -> tuple[int, int]:
        return divmod(self.architecture, 10)

    def get_active_torch_device(self) -> Any:
        import torch

        return torch.device("cuda", 0)


def compile_all(calls: Sequence[Any], target_name: str) -> Outcome:
    """What the Triton of this process makes of these calls' kernels."""
    import triton
    from triton.runtime import driver

    from benchmarks.cubin import read_cubin, specialise
    from benchmarks.kernels_report import allowance, parse_target
    from benchmarks.known_spills import KNOWN_SPILLS, Spill
    from resclip_kernels.launch import watch

    target = parse_target(target_name)
    driver.set_active(NamedTarget(int(target.architecture)))
    outcome = Outcome(triton.__version__, target_name)
    seen: set[str] = set()
    for call in calls:
        with watch(execute=False, target=target) as watcher:
            call.run()
        for launch in watcher.launches:
            key = specialise(launch, target).key
            if key in seen:
                continue
            seen.add(key)
            outcome.wanted += 1
            kernel = launch.kernel.__name__
            where = f"{kernel} ({call.case}, {call.model}, {call.dtype})"
            try:
                compiled = launch.kernel.warmup(
                    **launch.arguments,
                    **launch.constants,
                    **launch.options.keywords,
                    grid=(max(1, launch.programs),),
                )
                _, spilled, _ = read_cubin(compiled.asm["cubin"], disassemble=False)
            # Whatever this version raises, the others are to be compiled.
            except Exception as error:  # noqa: BLE001
                lines = str(error).strip().splitlines() or [""]
                outcome.problems.append(f"{where}: {type(error).__name__}: {lines[-1]}")
                continue
            outcome.compiled += 1
            outcome.spilling += spilled > 0
            spill = Spill(kernel, call.case, call.model, call.dtype, target_name)
            if spilled > allowance(spill, KNOWN_SPILLS):
                outcome.problems.append(f"{where} spills {spilled} bytes a thread")
    return outcome


def worker(target: str) -> int:
    """One line of JSON for one target."""
    from benchmarks.kernel_calls import OPS, standard_calls

    print(json.dumps(asdict(compile_all(list(standard_calls(OPS, quick=True)), target))))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile with each version for each target; returns 0 where all is sound, else 1."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks kernels-matrix", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--versions",
        default=VERSIONS,
        help=f"oldest, installed, newest, or numbers as 3.6; default: {VERSIONS}",
    )
    parser.add_argument("--targets", default=TARGETS, help=f"default: {TARGETS}")
    parser.add_argument(
        "--folder", type=Path, default=FOLDER, help="of installations by version; default: build/"
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes that compile; default: 2")
    parser.add_argument("--worker", metavar="TARGET", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        return worker(options.worker)
    if options.jobs < 1:
        parser.error(f"--jobs must be at least 1; got {options.jobs}")
    targets = options.targets.split(",")
    for target in targets:
        if not target.removeprefix("sm_").isdigit():
            parser.error(f"a target is sm_ and a number; got {target!r}")
    return compile_matrix(options.versions.split(","), targets, options.folder, options.jobs)


def compile_matrix(versions: Sequence[str], targets: Sequence[str], folder: Path, jobs: int) -> int:
    """Print what each version makes of each target; the exit status."""
    places: list[Path | None] = []
    failed = False
    for version in versions:
        try:
            places.append(installation(version, folder.resolve()))
        except NoVersionError as error:
            print(f"kernels-matrix: {error}", file=sys.stderr)
            failed = True
    with ThreadPoolExecutor(jobs) as pool:
        wanted = [(place, target) for place in places for target in targets]
        for outcome in pool.map(lambda pair: compile_with(*pair), wanted):
            print(outcome, flush=True)
            for problem in outcome.problems:
                print(f"  {problem}")
            failed |= bool(outcome.problems) or outcome.compiled < outcome.wanted
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

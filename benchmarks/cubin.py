"""Compiles a kernel's launch for any target, without that device, and reads what its machine code uses.

Registers, memory and matrix instructions come from Triton's metadata and from `cuobjdump`, or from AMD's assembly.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from resclip_kernels.launch import Launch, Target

# The matrix units' instructions: HMMA and its kin take a warp, HGMMA a group of four warps (sm_90), UTCHMMA a block
# (sm_100).
MATRIX_INSTRUCTION = re.compile(r"\b(UTC\w*MMA|[HIQDBO]G?MMA)\b")


@dataclass(frozen=True)
class Compilation:
    """All that decides the machine code of a launch."""

    kernel: Any
    signature: Mapping[str, Any]
    constants: Mapping[tuple[int, ...], Any]
    attributes: Mapping[tuple[int, ...], Any]
    options: Mapping[str, Any]
    target: Target

    @property
    def key(self) -> str:
        """Equal for two launches exactly where their machine code is."""
        kernel = f"{self.kernel.__module__}.{self.kernel.__name__}"
        parts = (self.signature, self.constants, self.attributes, self.options, self.target)
        return repr((kernel, *parts))


@dataclass(frozen=True)
class Facts:
    """What a compiled kernel uses."""

    registers: int
    """Of 32 bits, per thread."""
    spilled: int
    """Bytes of memory per thread that stand in for registers."""
    shared: int
    """Bytes of shared memory (LDS) per block."""
    tensor_memory: int
    """Columns of tensor memory per block, sm_100 only."""
    dots: tuple[str, ...]
    """The left operands' types of every `tl.dot`, e.g. "f16"."""
    matrix_instructions: Mapping[str, int]
    """How many of each there are in the machine code of a kernel with a `tl.dot`."""


def gpu_target(target: Target) -> GPUTarget:
    """Triton's name for a target."""
    wide = target.backend == "hip" and str(target.architecture).startswith("gfx9")
    return GPUTarget(target.backend, target.architecture, 64 if wide else 32)


def specialise(launch: Launch, target: Target) -> Compilation:
    """What Triton's runtime would compile for these arguments on that target, by its own rules.

    A pointer counts as aligned to 16 bytes where the tensor's offset into its allocation is: a "meta" tensor's
    allocation starts at 0, and allocators align every allocation more than that.
    """
    kernel, options = launch.kernel, launch.options
    backend = make_backend(gpu_target(target))
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialisation, remaining = bind(
        **launch.arguments, **launch.constants, **options.keywords
    )
    parsed, signature, constants, attributes = kernel._pack_args(  # noqa: SLF001
        backend, remaining, bound, specialisation, remaining
    )
    return Compilation(kernel, signature, constants, attributes, parsed.__dict__, target)


def compile_for(compilation: Compilation) -> Facts:
    """Compile, or take it from Triton's cache, and read what it uses; Triton's own errors where it cannot."""
    source = ASTSource(
        compilation.kernel, compilation.signature, compilation.constants, compilation.attributes
    )
    compiled = triton.compile(
        source, target=gpu_target(compilation.target), options=dict(compilation.options)
    )
    dots = tuple(re.findall(r"= tt\.dot .*? : tensor<(?:\d+x)+(\w+)", compiled.asm["ttir"]))
    if compilation.target.backend == "hip":
        registers, spilled, matrix = read_assembly(compiled.asm["amdgcn"])
    else:
        registers, spilled, matrix = read_cubin(compiled.asm["cubin"], disassemble=bool(dots))
    return Facts(
        registers,
        spilled,
        compiled.metadata.shared,
        getattr(compiled.metadata, "tmem_size", None) or 0,
        dots,
        matrix,
    )


def read_cubin(cubin: bytes, *, disassemble: bool) -> tuple[int, int, dict[str, int]]:
    """Registers, bytes of stack and local memory, and matrix instructions (none unless disassembled)."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = cuobjdump("-res-usage", path)
        code = cuobjdump("-sass", path) if disassemble else ""
    used = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage))
    spilled = int(used["STACK"]) + int(used["LOCAL"])
    return int(used["REG"]), spilled, dict(Counter(MATRIX_INSTRUCTION.findall(code)))


def cuobjdump(option: str, path: Path) -> str:
    """What the cuobjdump inside the triton package says of a file; nvdisasm, which it calls, lies beside it."""
    tool = Path(triton.knobs.nvidia.cuobjdump.path)
    environment = {**os.environ, "PATH": f"{tool.parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    return subprocess.run(
        [tool, option, path], capture_output=True, text=True, check=True, env=environment
    ).stdout


def read_assembly(text: str) -> tuple[int, int, dict[str, int]]:
    """Registers, bytes of scratch and of spilled scalars, and matrix instructions of an AMD kernel."""

    def number(name: str) -> int:
        return int(re.findall(rf"^\s*\.{name}:\s*(\d+)", text, re.MULTILINE)[0])

    # Vectors spill to scratch memory, or to accumulation registers without any; scalars to lanes of vectors.
    spilled = max(number("private_segment_fixed_size"), 4 * number("vgpr_spill_count"))
    spilled += 4 * number("sgpr_spill_count")
    matrix = Counter(re.findall(r"\b(v_s?mfmac?|v_wmma)_", text))
    return number("vgpr_count"), spilled, dict(matrix)

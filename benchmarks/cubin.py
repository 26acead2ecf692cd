"""Compiles a kernel's launch for any target, without that device, and reads what its machine code uses.

Registers, memory and matrix instructions come from Triton's metadata and from `cuobjdump`, or from AMD's assembly.
"""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton._C.libtriton import ir
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

    @property
    def lowered_key(self) -> str:
        """Equal for two launches where Triton's first representation of them is, whatever the target."""
        kernel = f"{self.kernel.__module__}.{self.kernel.__name__}"
        return repr((kernel, self.signature, self.constants))


@dataclass(frozen=True)
class Loop:
    """A loop of an NVIDIA kernel's machine code, without the loops inside it."""

    inner: int
    """How many loops are inside it."""
    instructions: int
    matrix: int
    """Of them on matrix units."""
    barriers: int
    """Of them for the whole block."""
    copies: int
    """Of them from global to shared memory, which run on while the program does."""
    waits: tuple[int, ...]
    """For every wait for such copies: how many groups of them may still be on their way; 0 where it is for all."""

    @property
    def prefetches(self) -> bool:
        """Whether copies stay on their way while it computes; what a loop inside has started, it may wait for."""
        return self.inner > 0 or self.copies == 0 or 0 not in self.waits


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
    loops: tuple[Loop, ...] = ()
    """Those with matrix instructions, in the order of their heads; NVIDIA only."""
    outside: int = 0
    """Instructions outside all loops, of a kernel with a `tl.dot`; NVIDIA only."""


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


def source_of(compilation: Compilation) -> ASTSource:
    """What Triton's compiler takes."""
    return ASTSource(
        compilation.kernel, compilation.signature, compilation.constants, compilation.attributes
    )


def lower(compilation: Compilation) -> None:
    """Make Triton's first representation (TTIR) of a launch, and no more; Triton's own errors where it cannot."""
    target = gpu_target(compilation.target)
    backend = make_backend(target)
    options = backend.parse_options(dict(compilation.options))
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    generators = backend.get_codegen_implementation(options)
    source_of(compilation).make_ir(target, options, generators, backend.get_module_map(), context)


def compile_for(compilation: Compilation) -> Facts:
    """Compile, or take it from Triton's cache, and read what it uses; Triton's own errors where it cannot."""
    compiled = triton.compile(
        source_of(compilation),
        target=gpu_target(compilation.target),
        options=dict(compilation.options),
    )
    dots = tuple(re.findall(r"= tt\.dot .*? : tensor<(?:\d+x)+(\w+)", compiled.asm["ttir"]))
    loops: tuple[Loop, ...] = ()
    outside = 0
    if compilation.target.backend == "hip":
        registers, spilled, matrix = read_assembly(compiled.asm["amdgcn"])
    else:
        registers, spilled, code = read_cubin(compiled.asm["cubin"], disassemble=bool(dots))
        matrix = dict(Counter(MATRIX_INSTRUCTION.findall(code)))
        loops = tuple(loop for loop in loops_of(code) if loop.matrix)
        outside = instructions_outside_loops(code)
    return Facts(
        registers,
        spilled,
        compiled.metadata.shared,
        getattr(compiled.metadata, "tmem_size", None) or 0,
        dots,
        matrix,
        loops,
        outside,
    )


def read_cubin(cubin: bytes, *, disassemble: bool) -> tuple[int, int, str]:
    """Registers, bytes of stack and local memory, and machine code as text (none unless disassembled)."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = cuobjdump("-res-usage", path)
        code = cuobjdump("-sass", path) if disassemble else ""
    used = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage))
    spilled = int(used["STACK"]) + int(used["LOCAL"])
    return int(used["REG"]), spilled, code


@dataclass(frozen=True)
class Instruction:
    """A line of `cuobjdump -sass`."""

    address: int
    text: str
    """With its predicate in front, as "@P0 BRA 0x1760"."""

    @property
    def name(self) -> str:
        words = self.text.split()
        return words[1] if words[0].startswith("@") else words[0]

    @property
    def target(self) -> int | None:
        """Where it may jump."""
        jumps = self.name.split(".")[0] in ("BRA", "JMP", "CALL", "BSSY")
        addresses = re.findall(r"\b0x[0-9a-f]+\b", self.text) if jumps else []
        return int(addresses[-1], 16) if addresses else None

    @property
    def goes_on(self) -> bool:
        """Whether the next one may follow."""
        kind = self.name.split(".")[0]
        # A condition stands in front of the instruction or of the address.
        condition = re.search(r"@|\bU?P\d", self.text)
        return kind not in ("BRA", "JMP", "EXIT", "RET", "BRX") or condition is not None


def instructions_of(sass: str) -> list[Instruction]:
    """The instructions that can be reached, in the order of their addresses."""
    found = re.findall(r"^\s*/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", sass, re.MULTILINE)
    every = {int(address, 16): Instruction(int(address, 16), text) for address, text in found}
    reached: set[int] = set()
    waiting = [min(every)] if every else []
    following = successors(list(every.values()))
    while waiting:
        address = waiting.pop()
        if address not in reached:
            reached.add(address)
            waiting += following[address]
    return [every[address] for address in sorted(reached)]


def successors(instructions: Sequence[Instruction]) -> dict[int, list[int]]:
    """The addresses that may follow on each."""
    addresses = [instruction.address for instruction in instructions]
    after = dict(itertools.pairwise(addresses))
    following: dict[int, list[int]] = {address: [] for address in addresses}
    for instruction in instructions:
        places = following[instruction.address]
        if instruction.target in following:
            places.append(instruction.target)
        if instruction.goes_on and instruction.address in after:
            places.append(after[instruction.address])
    return following


def bodies_of(instructions: Sequence[Instruction]) -> dict[int, set[int]]:
    """The addresses of each loop by its head's: all from which a jump back to the head can be reached."""
    following = successors(instructions)
    preceding: dict[int, list[int]] = {address: [] for address in following}
    for address, places in following.items():
        for place in places:
            preceding[place].append(address)
    bodies: dict[int, set[int]] = {}
    for head, ends in jumps_back(following).items():
        body, waiting = {head}, list(ends)
        while waiting:
            address = waiting.pop()
            if address not in body:
                body.add(address)
                waiting += preceding[address]
        bodies[head] = body
    return bodies


def jumps_back(following: Mapping[int, list[int]]) -> dict[int, list[int]]:
    """From where each loop's head is jumped back to: a walk in depth meets the head again before it has left it."""
    found: dict[int, list[int]] = {}
    if not following:
        return found
    start = min(following)
    state = {start: "open"}
    walk = [(start, iter(following[start]))]
    while walk:
        address, places = walk[-1]
        for place in places:
            if state.get(place) == "open":
                # The last instruction jumps to itself, in case anything arrives there.
                if place != address:
                    found.setdefault(place, []).append(address)
            elif place not in state:
                state[place] = "open"
                walk.append((place, iter(following[place])))
                break
        else:
            state[address] = "left"
            walk.pop()
    return dict(sorted(found.items()))


def loops_of(sass: str) -> list[Loop]:
    """The loops of a kernel that `cuobjdump -sass` has printed, in the order of their heads."""
    instructions = instructions_of(sass)
    bodies = bodies_of(instructions)
    loops = []
    for body in bodies.values():
        inner = [other for other in bodies.values() if other < body]
        own = body.difference(*inner)
        loops.append(loop_of([one for one in instructions if one.address in own], len(inner)))
    return loops


def instructions_outside_loops(sass: str) -> int:
    """How many instructions run once at most."""
    instructions = instructions_of(sass)
    inside: set[int] = set().union(*bodies_of(instructions).values())
    return len(instructions) - len(inside)


def loop_of(instructions: Sequence[Instruction], inner: int) -> Loop:
    """What a loop of these instructions holds."""

    def count(pattern: str) -> int:
        return sum(re.match(pattern, instruction.name) is not None for instruction in instructions)

    texts = " ".join(instruction.text for instruction in instructions)
    return Loop(
        inner,
        len(instructions),
        sum(MATRIX_INSTRUCTION.match(instruction.name) is not None for instruction in instructions),
        count(r"BAR\."),
        count(r"LDGSTS\b"),
        tuple(
            int(left, 16) for left in re.findall(r"(?<!\.)\bDEPBAR\.LE SB0, (0x[0-9a-f]+)", texts)
        ),
    )


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

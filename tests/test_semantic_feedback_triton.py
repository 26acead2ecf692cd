"""Ŝ's kernels: every entry against float64, the state, what is launched, memory. The bits have their own tests."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from kernel_support import kernel_device, label_map, pairwise, spoilt_memory
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from resclip_kernels import SemanticFeedback, feedback_matrix, residual_attention, semantic_feedback
from resclip_kernels.launch import Options, Target, launch, watch
from resclip_kernels.ops.semantic_feedback import reference
from resclip_kernels.ops.semantic_feedback.state import ROW_SUM_EPSILON, gaussian_kernel

triton = pytest.importorskip("triton", reason="the kernels need triton")
import triton.language as tl  # noqa: E402

from resclip_kernels.ops.residual_attention import additive_terms_triton  # noqa: E402
from resclip_kernels.ops.semantic_feedback import triton as kernels  # noqa: E402
from resclip_kernels.ops.semantic_feedback.triton_tiles import patch_positions  # noqa: E402

RULES = ("prefix", "line", "component", None)
FLOAT32 = (
    2.0**-19
)  # 16 roundings: exp2 of the decay and of a tap, their product, and sums of positive terms.
GRIDS = [
    pytest.param((1, 1), id="one-patch"),
    pytest.param((1, 9), id="one-row-under-one-tile"),
    pytest.param((8, 4), id="one-whole-tile"),
    pytest.param((5, 13), id="wide-one-more-than-two-tiles"),
]


def maps(seed: int, grid: tuple[int, int], batch: int = 2) -> Tensor:
    return label_map(seed, batch=batch, grid=grid).to(kernel_device())


def state(labels: Tensor, **rules: Any) -> SemanticFeedback:
    return semantic_feedback(labels, implementation="triton", **rules)


def exact_matrix(feedback: SemanticFeedback) -> tuple[Tensor, Tensor, Tensor]:
    """(Ŝ before it is rounded to float16, the rows' sums, the maximum), in float64."""
    options = dataclasses.replace(feedback.options, normalise=False)
    smoothed = reference.semantic_feedback(feedback.labels, options, torch.float64).dense
    sums = smoothed.sum(dim=-1)
    rows = smoothed / (sums.unsqueeze(-1) + ROW_SUM_EPSILON)
    maximum = rows.flatten(1).amax(dim=1)
    return rows / maximum.view(-1, 1, 1) if feedback.options.normalise else smoothed, sums, maximum


def half_ulp(value: Tensor) -> Tensor:
    """Half a float16 step at each value in [0, 1]."""
    exponent = torch.floor(torch.log2(value.clamp(min=2.0**-14)))
    return 2.0 ** (exponent - 11)


def check_entries(feedback: SemanticFeedback, matrix: Tensor) -> None:
    """Each entry is one that a float32 kernel may round to."""
    exact, _, _ = exact_matrix(feedback)
    rounding = half_ulp(exact) if feedback.options.normalise else 0.0
    assert matrix.shape == exact.shape
    assert matrix.dtype == torch.float32
    assert ((matrix - exact).abs() <= rounding + FLOAT32 * exact).all()


def check_not_normalised(feedback: SemanticFeedback) -> None:
    """The same state without its last step, where nothing is rounded to float16."""
    options = dataclasses.replace(feedback.options, normalise=False)
    plain = dataclasses.replace(feedback, options=options)
    check_entries(plain, feedback_matrix(plain, implementation="triton"))


# A rule decides the bits alone, which have their own tests: here are some, or none.
@pytest.mark.parametrize("rule", ("line", None))
@pytest.mark.parametrize("grid", GRIDS)
def test_every_entry_is_right(seed: int, grid: tuple[int, int], rule: Any) -> None:
    # One label map in blobs, one that is mostly noise.
    labels = torch.cat([label_map(seed, grid=grid, blob=blob) for blob in (3, 1)])
    feedback = state(labels.to(kernel_device()), connectivity=rule)
    matrix = feedback_matrix(feedback, implementation="triton")
    check_entries(feedback, matrix)
    assert torch.equal(matrix.half().float(), matrix)
    assert torch.equal(matrix.flatten(1).amax(dim=1), torch.ones_like(feedback.maximum))
    check_not_normalised(feedback)


@pytest.mark.parametrize(
    ("std", "reach", "margin"),
    [(0.0, 0, 0), (0.3, 1, 16), (5.0, 15, 16), (12.0, 36, 48)],
)
def test_every_margin_of_the_smoothing(seed: int, std: float, reach: int, margin: int) -> None:
    # 75 patches: σ = 12 has 73 taps.
    feedback = state(maps(seed, (5, 15), 1), smoothing_std=std)
    smoothing = kernels.smoothing_of(feedback)
    assert (smoothing.reach, smoothing.margin) == (reach, margin)
    check_entries(feedback, feedback_matrix(feedback, implementation="triton"))
    check_not_normalised(feedback)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    ("rule", "std", "grid"), pairwise(RULES, (0.0, 5.0, 12.0), ((24, 24), (37, 50)))
)
def test_full_size(seed: int, rule, std: float, grid: tuple[int, int]) -> None:
    feedback = state(maps(seed, grid, 4), connectivity=rule, smoothing_std=std)
    check_entries(feedback, feedback_matrix(feedback, implementation="triton"))


@pytest.mark.parametrize("std", (0.0, 12.0))
def test_tiles_in_float16(seed: int, std: float) -> None:
    feedback = state(maps(seed, (5, 15), 1), smoothing_std=std, connectivity="line")
    matrix = kernels.feedback_matrix(feedback, tile_dtype=torch.float16)
    exact, sums, maximum = exact_matrix(feedback)
    # An entry and its tap are each rounded by 2^-11 of themselves; taps under 2^-14 by half of 2^-24.
    taps = len(gaussian_kernel(std, 75)) if std else 1
    scale = 1.0 / (sums.unsqueeze(-1) * maximum.view(-1, 1, 1))
    allowed = 2.0**-10 * exact + half_ulp(exact) * 1.01 + taps * 2.0**-25 * scale + FLOAT32 * exact
    assert ((matrix - exact).abs() <= allowed).all()
    # What q, k, v of bfloat16 get as well.
    same = kernels.feedback_matrix(feedback, tile_dtype=torch.bfloat16)
    assert torch.equal(same, matrix)


@pytest.mark.parametrize("rule", ("component", None))
def test_state_equals_the_formula(seed: int, rule) -> None:
    labels = maps(seed, (5, 9))
    feedback = state(labels, connectivity=rule)
    plain = semantic_feedback(labels, connectivity=rule, implementation="torch")
    assert (feedback.far is None) == (rule is None)
    if feedback.far is not None:
        assert torch.equal(feedback.far, plain.far)
    _, sums, maximum = exact_matrix(feedback)
    for got, exact in ((feedback.row_sums, sums), (feedback.maximum, maximum)):
        assert got.dtype == torch.float32
        assert ((got - exact).abs() <= FLOAT32 * exact).all()
    assert feedback.dense is None


def test_states_of_both_implementations_can_be_exchanged(seed: int) -> None:
    # 45 patches: torch's rows of 6 bytes are padded to 8, where the kernels read words.
    labels = maps(seed, (5, 9))
    plain = semantic_feedback(labels, implementation="torch")
    check_entries(plain, feedback_matrix(plain, implementation="triton"))
    own = state(labels)
    check_entries(own, feedback_matrix(own, implementation="torch"))
    assert kernels.far_words(own.far).data_ptr() == own.far.data_ptr()
    words = kernels.far_words(plain.far)
    assert words.data_ptr() != plain.far.data_ptr()
    assert words.shape == kernels.far_words(own.far).shape == (2, 45, 4)
    used = words.view(torch.uint8)[..., :6]
    assert torch.equal(used, plain.far)


def test_labels_of_any_value_and_layout(seed: int) -> None:
    labels = maps(seed, (5, 3))
    expected = feedback_matrix(state(labels), implementation="triton")
    # Some are equal in their lower, or upper, 32 bits.
    values = torch.tensor([-(2**63), 2**63 - 1, 2**32 - 1, -1], device=labels.device)
    for other in (values[labels], labels.int(), labels.mT.contiguous().mT):
        assert torch.equal(feedback_matrix(state(other), implementation="triton"), expected)


def test_each_image_is_on_its_own(seed: int) -> None:
    labels = maps(seed, (3, 4), batch=3)
    together = state(labels)
    matrix = feedback_matrix(together, implementation="triton")
    for which in ([2, 0, 1], [1]):
        some = state(labels[which])
        for name in ("far", "row_sums", "maximum"):
            assert torch.equal(getattr(some, name), getattr(together, name)[which])
        assert torch.equal(feedback_matrix(some, implementation="triton"), matrix[which])


@pytest.mark.parametrize("rule", ("prefix", None))
def test_outputs_are_written_in_full(seed: int, rule) -> None:
    labels = maps(seed, (3, 5))
    expected = state(labels, connectivity=rule)
    matrix = feedback_matrix(expected, implementation="triton")
    with spoilt_memory():
        got = state(labels, connectivity=rule)
        # Bits past the last patch, too, are filled with 85 where nothing writes them.
        assert torch.equal(feedback_matrix(got, implementation="triton"), matrix)
    for name in ("row_sums", "maximum"):
        assert torch.equal(getattr(got, name), getattr(expected, name))


@pytest.mark.parametrize(("rows", "columns"), [(16, 64), (64, 32)])
def test_blocks_do_not_matter(seed: int, rows: int, columns: int, monkeypatch) -> None:
    labels = maps(seed, (6, 14), batch=1)
    for name in ("FLOAT_BLOCKS", "HALF_BLOCKS"):
        monkeypatch.setattr(kernels, name, kernels.Blocks(rows, columns))
    feedback = state(labels, connectivity=None, smoothing_std=12.0)
    check_entries(feedback, feedback_matrix(feedback, implementation="triton"))


@triton.jit
def positions_kernel(y, x, patch_grid, BLOCK: tl.constexpr):
    """Where `patch_positions` puts each patch."""
    patch = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    patch_y, patch_x = patch_positions(patch, patch_grid)
    tl.store(y + patch, patch_y)
    tl.store(x + patch, patch_x)


@pytest.mark.parametrize("width", (1, 7, 49, 1023, 1025, 262143, 1 << 20))
def test_positions_are_exact_for_as_many_patches_as_there_may_be(width: int) -> None:
    patches, block = 1 << 20, 1 << 16
    y, x = torch.empty(2, patches, device=kernel_device())
    launch(
        positions_kernel,
        patches // block,
        {"y": y, "x": x, "patch_grid": kernels.grid_arguments((patches // width, width))},
        {"BLOCK": block},
        Options(),
        on=y,
    )
    patch = torch.arange(patches, device=y.device)
    assert torch.equal(y.long(), patch // width)
    assert torch.equal(x.long(), patch % width)


def test_which_kernels_run(seed: int) -> None:
    labels = maps(seed, (2, 3))
    with watch() as watcher:
        feedback = state(labels)
    *bits, classes, sums = watcher.names()
    assert bits[-1] == "far_bits_kernel"
    assert [classes, sums] == ["class_numbers_kernel", "feedback_sums_kernel"]
    with watch() as watcher:
        matrix = feedback_matrix(feedback, implementation="triton")
    assert watcher.names() == ["class_numbers_kernel", "feedback_matrix_kernel"]
    with watch() as watcher:
        state(labels, connectivity=None, normalise=False)
        feedback_matrix(feedback, implementation="torch")
        held = dataclasses.replace(feedback, dense=matrix)
        assert feedback_matrix(held, implementation="triton") is matrix
    assert watcher.names() == []


def test_what_cannot_run_is_refused(seed: int) -> None:
    labels = torch.empty(1, 1025, 1024, dtype=torch.int64, device="meta")
    with pytest.raises(ValueError, match="at most 1048576 patches an image; got 1025 × 1024"):
        state(labels)
    feedback = state(maps(seed, (2, 3)), connectivity=None)
    with pytest.raises(ValueError, match="'reference' does not exist for this op"):
        feedback_matrix(feedback, implementation="reference")


class Allocations(TorchDispatchMode):
    """Remembers the bytes of the largest memory behind any operator's result."""

    largest = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        result = function(*arguments, **(options or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("rule", ("prefix", "component", None))
def test_memory_is_one_bit_a_pair(rule, monkeypatch: pytest.MonkeyPatch) -> None:
    # 2,304 patches: 5.3 million pairs. The state holds the bits, 72 words a row; the attention no more than its bound.
    bound = 1 << 20
    monkeypatch.setattr(additive_terms_triton, "STORED_BYTES", bound)
    patches, device = 48 * 48, torch.device("meta")
    labels = torch.empty(1, 48, 48, dtype=torch.int64, device=device)
    flat = [torch.empty(1, 1, 1 + patches, 32, device=device).half() for _ in range(5)]
    target = Target("cuda", 90)
    with watch(execute=False, target=target) as watcher, Allocations() as allocations:
        feedback = state(labels, connectivity=rule)
        residual_attention(
            *flat[:3],
            grid=(48, 48),
            correlation="qq+kk",
            neighbourhood_std=5.0,
            feedback=feedback,
            cross_layers=[(flat[3], flat[4])],
            implementation="triton",
        )
    assert watcher.names().count("base_kernel") > 1
    rows = (1 + patches) * 32 * 2
    bits = 0 if rule is None else math.ceil(patches / 32) * 4 * patches
    stored = allocations.largest
    assert bits <= stored <= max(rows, bits, bound)
    with watch(execute=False, target=target), Allocations() as allocations:
        feedback_matrix(feedback, implementation="triton")
    assert allocations.largest == 4 * patches**2


@pytest.mark.parametrize("smoothing_std", [5.7, 20.0])
def test_nothing_outside_the_tensors_is_read(seed: int, smoothing_std: float) -> None:
    """A wide Gaussian's tiles begin and end words outside a row of bits: the first and last rows have nothing there.

    Where kernels are interpreted, `kernel_checks` watches every address.
    """
    feedback = state(maps(seed, (9, 8)), smoothing_std=smoothing_std)
    matrix = feedback_matrix(feedback, implementation="triton")
    assert torch.isfinite(matrix).all()

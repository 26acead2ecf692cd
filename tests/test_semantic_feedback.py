"""Semantic feedback: connectivity bit by bit against the pairs × steps table, and the matrix itself."""

from __future__ import annotations

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_support import label_map, pairwise

from resclip_kernels import (
    FeedbackOptions,
    SemanticFeedback,
    feedback_matrix,
    proxy_attention,
    residual_attention,
    semantic_feedback,
)
from resclip_kernels.ops.semantic_feedback import portable, reference
from resclip_kernels.ops.semantic_feedback.state import (
    gaussian_kernel,
    line_coordinate,
    path_table,
    sample_times,
)

RULES = ("prefix", "line", "component")
GRIDS = [
    pytest.param((1, 1), id="one-patch"),
    pytest.param((1, 9), id="one-row"),
    pytest.param((14, 14), id="vit-b16-odd-M"),
    pytest.param((9, 21), id="wide-even-M-where-ties-arise"),
    pytest.param((2, 2), id="under-one-byte-of-bits"),
]


def far_bits(labels: torch.Tensor, rule: str) -> torch.Tensor:
    """Same label and not connected, by the plain rule: (n, n)."""
    flat = labels.flatten()
    return (flat[:, None] == flat) & ~reference.connected(labels, rule)


@pytest.mark.parametrize("grid", GRIDS)
def test_connectivity_equals_the_table(seed: int, grid) -> None:
    labels = torch.cat([label_map(seed, grid=grid, classes=3, blob=blob) for blob in (1, 4)])
    for rule in RULES:
        feedback = semantic_feedback(labels, connectivity=rule)
        if feedback.patches == 1:
            assert feedback.far is None
            continue
        found = portable.unpack(feedback.far, feedback.patches)
        for bits, image in zip(found, labels, strict=True):
            assert torch.equal(bits, far_bits(image, rule)), rule


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(1, 18),
    width=st.integers(1, 18),
    classes=st.integers(1, 3),
    blob=st.integers(1, 6),
    rule=st.sampled_from(RULES),
    seed=st.integers(0, 2**31 - 1),
)
def test_connectivity_of_any_map(height, width, classes, blob, rule, seed) -> None:
    labels = label_map(seed, grid=(height, width), classes=classes, blob=blob)
    if height * width > 1:
        bits = portable.unpack(portable.far_pairs(labels[0], rule), height * width)
        assert torch.equal(bits, far_bits(labels[0], rule))


@pytest.mark.parametrize(
    ("grid", "rule", "normalise"),
    # The rule decides the bits alone, which are checked above: here are some, or none.
    pairwise([(1, 1), (1, 9), (15, 13), (2, 2)], ("prefix", None), (True, False)),
)
def test_matrix_against_float64(seed: int, grid, rule, normalise: bool) -> None:
    labels = label_map(seed, batch=2, grid=grid)
    oracle = reference.semantic_feedback(
        labels, FeedbackOptions(rule, normalise=normalise), torch.float64
    )
    for implementation in ("torch", "reference"):
        feedback = semantic_feedback(
            labels, connectivity=rule, normalise=normalise, implementation=implementation
        )
        matrix = feedback_matrix(feedback)
        # Normalised entries are float16: a float32 sum may fall on the other side of a rounding, one step apart.
        assert (matrix - oracle.dense).abs().max() <= (2**-10 if normalise else 1e-6)
        assert ((matrix - oracle.dense).abs() > 1e-6).float().mean() < 0.01


def test_normalised_matrix_has_a_one_and_unit_rows_before(seed: int) -> None:
    feedback = semantic_feedback(label_map(seed, batch=3, grid=(8, 9)))
    matrix = feedback_matrix(feedback)
    assert torch.equal(matrix.flatten(1).amax(dim=1), torch.ones(3))
    rows = portable.smoothed_rows(feedback, 0, 72) / (feedback.row_sums[..., None] + 1e-8)
    assert torch.allclose(rows.sum(dim=-1), torch.ones(()), atol=1e-5)


def test_state_does_not_depend_on_the_batch(seed: int) -> None:
    labels = label_map(seed, batch=4, grid=(7, 11))
    together = feedback_matrix(semantic_feedback(labels))
    alone = feedback_matrix(semantic_feedback(labels[2:3]))
    assert torch.equal(together[2], alone[0])


def test_row_blocks_do_not_matter(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = label_map(seed, batch=2, grid=(10, 13))
    whole = semantic_feedback(labels)
    expected = feedback_matrix(whole)
    monkeypatch.setattr(portable, "PAIRS_PER_BLOCK", 1000)
    pieces = semantic_feedback(labels)
    assert torch.equal(whole.far, pieces.far)
    assert torch.equal(expected[:, 30:57], portable.feedback_rows(pieces, 30, 57))


def test_smoothing_is_a_convolution(seed: int) -> None:
    rows = torch.rand(2, 3, 150, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(portable.smooth(rows, 5.0), reference.smooth(rows, 5.0), atol=1e-6)
    assert portable.smooth(rows, 0.0) is rows


@pytest.mark.parametrize(("std", "patches", "taps"), [(5.0, 196, 31), (5.0, 4, 5), (1.5, 196, 11)])
def test_kernel_size(std: float, patches: int, taps: int) -> None:
    kernel = gaussian_kernel(std, patches)
    assert len(kernel) == taps
    assert kernel.sum().item() == pytest.approx(1.0)


def test_sample_times_are_the_released_ones() -> None:
    assert sample_times(0) == (0.0,)
    for steps in (1, 2, 13, 20, 27, 63):
        times = torch.tensor(sample_times(steps))
        assert torch.allclose(times, torch.linspace(0, 1, steps + 1), atol=1e-7, rtol=0)
        assert times[0] == 0
        assert times[-1] == 1


def test_paths_start_and_end_where_they_should() -> None:
    table = path_table(21, 20, "prefix")
    assert torch.equal(table[0], torch.arange(21).view(-1, 1).expand(21, 21).int())
    assert torch.equal(table[-1], torch.arange(21).expand(21, 21).int())
    with pytest.raises(ValueError, match="only 'prefix'"):
        path_table(4, 3, "line")


def test_line_coordinate_rounds_half_to_even_exactly() -> None:
    for distance in range(1, 9):
        for start in range(6):
            for end in range(6):
                k = torch.arange(distance + 1)
                got = line_coordinate(
                    torch.tensor(start), torch.tensor(end), k, torch.tensor(distance)
                )
                exact = [round(start + (end - start) * step / distance) for step in k.tolist()]
                assert got.tolist() == exact


def test_boundary_distance() -> None:
    labels = torch.zeros(5, 7, dtype=torch.int64)
    labels[2, 0] = 1
    distance = portable.boundary_distance(labels)
    assert distance[2].tolist() == [1, 1, 2, 3, 4, 5, 6]
    assert (portable.boundary_distance(torch.zeros(3, 4)) == 4).all()


@pytest.mark.parametrize(
    ("labels", "arguments", "error", "message"),
    [
        (torch.zeros(3, 4), {}, ValueError, r"\(B, h, w\).*got \(3, 4\)"),
        (torch.zeros(1, 3, 4), {}, TypeError, "integers; got torch.float32"),
        (torch.zeros(1, 0, 4).long(), {}, ValueError, "number of patches must be at least 1"),
        (torch.zeros(1, 3, 4).long(), {"connectivity": "path"}, ValueError, "'prefix', 'line'"),
        (torch.zeros(1, 3, 4).long(), {"smoothing_std": -1}, ValueError, "at least 0; got -1"),
    ],
)
def test_errors_say_what_was_expected(labels, arguments, error, message) -> None:
    with pytest.raises(error, match=message):
        semantic_feedback(labels, **arguments)


def test_a_state_survives_storing_and_another_versions_is_refused(seed: int) -> None:
    feedback = semantic_feedback(label_map(seed, grid=(3, 4)))
    copied = pickle.loads(pickle.dumps(feedback))
    assert torch.equal(feedback_matrix(copied), feedback_matrix(feedback))
    assert copied.options == feedback.options
    for stored in ({"labels": feedback.labels}, {**vars(feedback), "format": 1}):
        with pytest.raises(
            ValueError, match=r"must be of format 2; got (none|1), of another version"
        ):
            SemanticFeedback.__new__(SemanticFeedback).__setstate__(stored)


def test_a_state_on_another_device_is_refused(seed: int) -> None:
    feedback = semantic_feedback(label_map(seed, grid=(2, 3)))
    value = torch.empty(1, 1, 6, 16, device="meta")
    with pytest.raises(
        ValueError, match="feedback must be on the device of query, meta; its state is on cpu"
    ):
        residual_attention(value, value, value, grid=(2, 3), feedback=feedback)
    with pytest.raises(ValueError, match="feedback must be on the device of features, meta"):
        proxy_attention(
            torch.empty(1, 8, 2, 3, device="meta"), value, grid=(2, 3), feedback=feedback
        )

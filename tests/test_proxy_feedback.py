"""The proxy attention with semantic feedback, and rows of its map.

Ŝ is rounded to float16, and the map jumps where an entry passes 0. The tests of semantic feedback check Ŝ itself; here
the oracle is given the Ŝ that the implementation forms.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import pytest
import torch
from kernel_support import check_budget, fused_dtypes, kernel_device, label_map
from torch import Tensor

from resclip_kernels import (
    ProxyAttentionOptions,
    SemanticFeedback,
    feedback_matrix,
    semantic_feedback,
)
from resclip_kernels.launch import Target, watch
from resclip_kernels.ops.proxy_attention import (
    portable,
    proxy_attention,
    proxy_rows,
    reference,
)
from resclip_kernels.ops.semantic_feedback.portable import feedback_rows

feedback_kernels = pytest.importorskip(
    "resclip_kernels.ops.semantic_feedback.triton", reason="the kernels need triton"
)

DEVICE = kernel_device()
FUSED = ("torch", "triton")
IMPLEMENTATIONS = (*FUSED, "reference")
VOC21 = {"feedback_weight": 0.7, "feedback_temperature": 2.2}


@pytest.fixture(autouse=True)
def tiles_of_one_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """The matrix kernel's tiles are as high as the attention's: BLAS adds in an order that depends on the shape.

    Else the same entry of Ŝ may round to float16 differently in the two.
    """
    monkeypatch.setattr(feedback_kernels, "FLOAT_BLOCKS", feedback_kernels.Blocks(32, 32))


class Inputs(NamedTuple):
    """Arguments of `proxy_attention` whose map can be compared between dtypes."""

    features: Tensor
    value: Tensor
    grid: tuple[int, int]
    feedback: SemanticFeedback
    options: dict[str, float]

    def run(self, implementation: str, **changes: Any) -> Tensor:
        arguments = {"grid": self.grid, "feedback": self.feedback, **self.options, **changes}
        return proxy_attention(
            self.features, self.value, implementation=implementation, **arguments
        )

    def to(self, dtype: torch.dtype) -> Inputs:
        return self._replace(features=self.features.to(dtype), value=self.value.to(dtype))

    def with_matrix(self, implementation: str) -> Inputs:
        """With the Ŝ that an implementation forms, for the reference to read."""
        if implementation == "triton":
            dense = feedback_kernels.feedback_matrix(self.feedback, self.features.dtype)
        else:
            images = self.feedback.images()
            dense = torch.cat([feedback_rows(image, 0, image.patches) for image in images])
        return self._replace(feedback=dataclasses.replace(self.feedback, dense=dense))

    def scores(self) -> Tensor:
        """S' in float64."""
        options = ProxyAttentionOptions(**self.options)
        weight, temperature = options.mixing
        score = reference.proxy_score(self.features.double(), options.beta, options.gamma)
        bonus = options.weighted(feedback_matrix(self.feedback), self.feedback.options.normalise)
        return temperature * ((1 - weight) * score + bonus)


def inputs(
    seed: int,
    implementation: str = "torch",
    *,
    size: tuple[int, int] = (5, 7),
    grid: tuple[int, int] = (3, 4),
    batch: int = 2,
    channels: int = 24,
    heads: int = 2,
    width: int = 16,
    dtype: torch.dtype = torch.float32,
    options: dict[str, float] = VOC21,
    **rules: Any,
) -> Inputs:
    """Features with a common part, normal values and blobs of labels, drawn until no entry of S' is about to jump.

    Each entry is to stay 4e-6·γ·τ_s away from 0, some 30 roundings of a cosine in float32; β rises with every draw.
    """
    for attempt in range(200):
        generator = torch.Generator().manual_seed(seed + attempt)
        common = torch.randn(batch, channels, 1, 1, generator=generator)
        features = common + torch.randn(batch, channels, *size, generator=generator)
        value = torch.randn(batch, heads, grid[0] * grid[1], width, generator=generator)
        labels = label_map(seed + attempt, batch=batch, grid=size).to(DEVICE)
        state = semantic_feedback(labels, implementation="torch", **rules)
        drawn = {"beta": 1.2 + attempt / 1000, "gamma": 3.0, **options}
        given = Inputs(features.to(DEVICE), value.to(DEVICE), grid, state, drawn).to(dtype)
        margin = 4e-6 * 3.0 * drawn["feedback_temperature"]
        scores = given.with_matrix(implementation).scores()
        if scores.numel() == 0 or scores.abs().min() > margin:
            return given
    raise AssertionError(f"no inputs away from the threshold in 200 draws from seed {seed}")


def check(given: Inputs, implementation: str) -> None:
    with watch() as watcher:
        got = given.run(implementation)
    assert ("proxy_attention_kernel" in watcher.names()) == (implementation == "triton")
    known = given.with_matrix(implementation)
    check_budget(got, known.run("reference"), known.to(torch.float64).run("reference"))


def flat_state(labels: Tensor) -> SemanticFeedback:
    """Ŝ of ones and zeros: equal labels."""
    return semantic_feedback(
        labels.to(DEVICE),
        connectivity=None,
        smoothing_std=0,
        normalise=False,
        implementation="torch",
    )


@pytest.mark.parametrize(("implementation", "dtype"), fused_dtypes(), ids=str)
def test_dtypes_are_within_budget(seed: int, dtype: torch.dtype, implementation: str) -> None:
    check(inputs(seed, implementation, dtype=dtype), implementation)


@pytest.mark.parametrize(
    "case",
    # Shapes and rules decide what is padded, masked and smoothed, whatever the dtype: each in float32.
    [
        pytest.param({"size": (1, 1), "grid": (1, 1), "heads": 1, "width": 5}, id="one-position"),
        pytest.param({"size": (7, 19), "batch": 1, "heads": 1}, id="133-over-a-padded-block"),
        pytest.param({"size": (1, 33), "grid": (1, 4), "batch": 1}, id="one-row-past-a-tile"),
        pytest.param(
            {"heads": 7, "width": 64, "batch": 1, "size": (2, 4)}, id="448-columns-two-groups"
        ),
        pytest.param({"smoothing_std": 8.0, "batch": 1}, id="smoothing-past-half-a-tile"),
        pytest.param({"smoothing_std": 0.0, "batch": 1}, id="no-smoothing"),
        pytest.param({"normalise": False, "connectivity": "line", "batch": 1}, id="paper"),
        pytest.param({"connectivity": None, "batch": 1}, id="no-decay-no-bits"),
        pytest.param(
            {"options": {"feedback_weight": 0.2, "feedback_temperature": 5.0}, "batch": 1},
            id="weak-and-sharp",
        ),
        pytest.param(
            {"options": {"feedback_weight": 0.95, "feedback_temperature": 8.4}, "batch": 1},
            id="as-strong-as-the-kernel-takes",
        ),
    ],
)
def test_shapes_and_rules_are_within_budget(seed: int, case: dict[str, Any]) -> None:
    for implementation in FUSED:
        check(inputs(seed, implementation, **case), implementation)


@pytest.mark.parametrize("target", [Target("cuda", 80), Target("cuda", 90)], ids=str)
def test_features_and_values_may_differ_in_dtype(seed: int, target: Target) -> None:
    for features, value in ((torch.float32, torch.float16), (torch.float16, torch.float32)):
        given = inputs(seed, "triton", batch=1, dtype=features)
        with watch(target=target):
            check(given._replace(value=given.value.to(value)), "triton")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_weight_0_at_temperature_1_is_no_feedback(seed: int, implementation: str) -> None:
    off = {"feedback_weight": 0.0, "feedback_temperature": 1.0}
    given = inputs(seed, options=off, size=(3, 4), batch=1)
    plain = given.run(implementation, feedback=None)
    torch.testing.assert_close(given.run(implementation), plain, rtol=1e-5, atol=1e-6)
    # And a temperature alone is a sharper γ.
    sharper = given.run(implementation, feedback=None, gamma=6.0)
    warmer = given.run(implementation, feedback_temperature=2.0)
    torch.testing.assert_close(warmer, sharper, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_weight_1_attends_by_the_labels_alone(seed: int, implementation: str) -> None:
    given = inputs(seed, size=(3, 4))
    known = given.with_matrix(implementation)
    weights = (2.5 * known.feedback.dense).softmax(dim=-1).unsqueeze(1)
    options = {"feedback_weight": 1.0, "feedback_temperature": 2.5}
    torch.testing.assert_close(
        known.run("reference", **options), weights @ given.value, rtol=1e-5, atol=1e-6
    )
    got = given.run(implementation, **options)
    torch.testing.assert_close(got, weights @ given.value, rtol=1e-3, atol=1e-3)
    other = given._replace(features=torch.randn_like(given.features))
    torch.testing.assert_close(other.run(implementation, **options), got, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_two_kinds_of_positions_and_two_labels_by_hand(implementation: str) -> None:
    # Columns 0 and 1 look one way, 2 and 3 another; label 0 is columns 0 to 2. mean(X Xᵀ) = 1/2, so S is 1.2 and −1.8;
    # with λ_s = 0.7 one label adds 0.7: alike 1.06 or 0.36, unlike 0.16 or nothing.
    features = torch.tensor([[1.0, 1, 0, 0], [0, 0, 2, 2]], device=DEVICE).view(1, 2, 1, 4)
    value = torch.eye(4, device=DEVICE).view(1, 1, 4, 4)
    output = proxy_attention(
        features,
        value,
        grid=(1, 4),
        feedback=flat_state(torch.tensor([[[0, 0, 0, 1]]])),
        feedback_weight=0.7,
        feedback_temperature=2.0,
        implementation=implementation,
    )
    nothing = -torch.inf
    expected = 2 * torch.tensor(
        [
            [1.06, 1.06, 0.16, nothing],
            [1.06, 1.06, 0.16, nothing],
            [0.16, 0.16, 1.06, 0.36],
            [nothing, nothing, 0.36, 1.06],
        ],
        device=DEVICE,
    )
    torch.testing.assert_close(output[0, 0], expected.softmax(dim=1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_position_with_nothing_left_attends_to_itself(seed: int, implementation: str) -> None:
    given = inputs(seed, size=(3, 4))
    assert torch.equal(given.run(implementation, beta=1e3), given.value)
    # What the similarity drops, the labels bring back: λ_s·Ŝ = 0.9 against −0.1·γ·β·mean.
    labels = torch.zeros(2, 3, 4, dtype=torch.int64)
    output = given.run(
        implementation, beta=2.0, gamma=1.0, feedback=flat_state(labels), feedback_weight=0.9
    )
    assert (output - given.value).abs().min() > 1e-6


@pytest.mark.parametrize("implementation", FUSED)
def test_each_image_has_its_own_labels_and_is_on_its_own(seed: int, implementation: str) -> None:
    given = inputs(seed, size=(3, 4), heads=1)
    together = given.run(implementation)
    labels = given.feedback.labels
    single = given._replace(
        features=given.features[1:],
        value=given.value[1:],
        feedback=semantic_feedback(labels[1:], implementation="torch"),
    )
    assert torch.equal(single.run(implementation), together[1:])
    changed = labels.clone()
    changed[0] = torch.arange(12, device=DEVICE).view(3, 4)
    changed = semantic_feedback(changed, implementation="torch")
    output = given._replace(feedback=changed).run(implementation)
    assert torch.equal(output[1], together[1])
    assert not torch.allclose(output[0], together[0], atol=1e-3)
    spoilt = given.features.clone()
    spoilt[0, 0, 0, 0] = torch.nan
    output = given._replace(features=spoilt).run(implementation)
    assert torch.equal(output[1], together[1])
    assert output[0].isnan().any()


def test_row_blocks_do_not_matter(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    given = inputs(seed, normalise=False)
    whole = given.run("torch")
    monkeypatch.setattr(portable, "ROW_BYTES", 4 * 35 * 8)
    torch.testing.assert_close(given.run("torch"), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("implementation", FUSED)
def test_batch_0(implementation: str) -> None:
    state = semantic_feedback(torch.zeros(0, 4, 4, dtype=torch.int64, device=DEVICE))
    output = proxy_attention(
        torch.ones(0, 8, 4, 4, device=DEVICE),
        torch.ones(0, 2, 6, 5, device=DEVICE),
        grid=(2, 3),
        feedback=state,
        implementation=implementation,
    )
    assert output.shape == (0, 2, 16, 5)


def test_launches_need_no_values_and_no_map() -> None:
    dtype = torch.bfloat16
    labels = torch.empty(2, 200, 200, dtype=torch.int64, device="meta")
    with watch(execute=False, target=Target("cuda", 90)) as watcher:
        proxy_attention(
            torch.empty(2, 768, 200, 200, dtype=dtype, device="meta"),
            torch.empty(2, 12, 28 * 28, 64, dtype=dtype, device="meta"),
            grid=(28, 28),
            feedback=semantic_feedback(labels, implementation="triton"),
            implementation="triton",
        )
    launched = watcher.launches[-1]
    assert launched.kernel.__name__ == "proxy_attention_kernel"
    bytes_of = {
        name: argument.numel() * argument.element_size()
        for name, argument in launched.arguments.items()
        if isinstance(argument, Tensor)
    }
    # One bit a pair, and no more of n²: a map of float16 would take 16.
    assert bytes_of.pop("far") == 2 * 200**4 / 8
    assert max(bytes_of.values()) <= 2 * (200 * 200 + 128) * (768 + 128) * dtype.itemsize
    tiles = launched.constants
    assert tiles["BLOCK_N"] == 32
    assert tiles["VALUE_COLUMNS"] % (tiles["TILES"] * tiles["BLOCK_D"]) == 0
    assert tiles["CHANNELS"] % tiles["BLOCK_C"] == 0
    assert 128 % tiles["BLOCK_M"] == 0


def test_what_the_kernel_cannot_run_is_refused_and_auto_takes_torch(seed: int) -> None:
    given = inputs(seed, size=(2, 3), batch=1)
    strong = {"feedback_weight": 0.9, "feedback_temperature": 10.0}
    plain = semantic_feedback(given.feedback.labels, implementation="reference")
    with pytest.raises(ValueError, match="up to 8; got 9: use 'torch'"):
        given.run("triton", **strong)
    with pytest.raises(ValueError, match="bits and this state has none"):
        given.run("triton", feedback=plain)
    with watch() as watcher:
        assert torch.equal(given.run("auto", **strong), given.run("torch", **strong))
        given.run("auto", feedback=plain)
    assert watcher.names() == []


def test_gradients_pass_through_torch(seed: int) -> None:
    given = inputs(seed, channels=8, size=(2, 3), batch=1)
    given.features.requires_grad_()
    given.value.requires_grad_()
    given.run("auto").square().sum().backward()
    assert given.features.grad.abs().max() > 0
    assert torch.isfinite(given.features.grad).all()
    assert torch.isfinite(given.value.grad).all()
    with pytest.raises(ValueError, match="requires grad"):
        given.run("triton")


@pytest.mark.parametrize("fed_back", (True, False))
def test_rows_of_the_map(seed: int, fed_back: bool) -> None:
    given = inputs(seed)
    feedback = given.feedback if fed_back else None
    rows = torch.tensor([34, 0, 17, 17])
    found = proxy_rows(given.features, rows, **{**given.options, "feedback": feedback})
    assert found.shape == (2, 4, 35)
    torch.testing.assert_close(found.sum(dim=2), torch.ones_like(found[..., 0]))
    assert torch.equal(found[:, 2], found[:, 3])
    value = torch.eye(35, device=DEVICE).expand(2, 1, 35, 35)
    whole = given._replace(value=value, grid=(5, 7)).run("torch", feedback=feedback)
    # A row at a time, Ŝ may be rounded to float16 the other way: 2^-11 of 0.7, times τ_s.
    torch.testing.assert_close(found, whole[:, 0, rows], rtol=2e-3, atol=1e-6)
    assert not fed_back or not torch.allclose(
        found, given._replace(value=value, grid=(5, 7)).run("torch", feedback=None)[:, 0, rows]
    )
    assert proxy_rows(given.features.half(), rows[:0]).shape == (2, 0, 35)
    assert proxy_rows(given.features.double(), rows).dtype is torch.float64
    assert proxy_rows(given.features.half(), rows).dtype is torch.float32


FEATURES, VALUE = torch.rand(2, 8, 3, 4), torch.rand(2, 2, 6, 5)
LABELS = torch.zeros(2, 3, 4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (LABELS.mT, {}, r"2 images of \(4, 3\) patches; features hold 2 of \(3, 4\)"),
        (LABELS[:1], {}, "1 images of .* patches; features hold 2"),
        (LABELS, {"feedback_weight": 1.1}, "feedback_weight must lie between 0 and 1; got 1.1"),
        (LABELS, {"feedback_temperature": 0.0}, "feedback_temperature.*above 0"),
    ],
)
def test_errors_say_what_was_expected(
    labels: Tensor, options: dict[str, Any], message: str
) -> None:
    state = semantic_feedback(labels, implementation="torch")
    with pytest.raises(ValueError, match=message):
        proxy_attention(FEATURES, VALUE, grid=(2, 3), feedback=state, **options)
    with pytest.raises(ValueError, match=message):
        proxy_rows(FEATURES, torch.tensor([0]), feedback=state, **options)


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        (torch.tensor([12]), ValueError, "between 0 and 11; got 12"),
        (torch.tensor([0.0]), TypeError, "int64 tensor .R,.*float32"),
        (torch.tensor(0), ValueError, "must be .R,.*got ..$"),
    ],
)
def test_rows_outside_the_grid_are_refused(rows: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        proxy_rows(FEATURES, rows)

"""The proxy attention, without and with semantic feedback, and rows of its map: against float64, and its properties.

Ŝ is rounded to float16, and the map jumps where an entry passes 0. The tests of semantic feedback check Ŝ itself; here
the oracle is given the Ŝ that the implementation forms.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from golden import arrays, tower
from kernel_support import (
    check_budget,
    fused_dtypes,
    kernel_device,
    label_map,
    nan_padded,
    spoilt_memory,
)
from torch import Tensor

from resclip_kernels import (
    ProxyAttentionOptions,
    SemanticFeedback,
    feedback_matrix,
    semantic_feedback,
)
from resclip_kernels.launch import Target, watch
from resclip_kernels.ops.proxy_attention import portable, proxy_attention, proxy_rows, reference
from resclip_kernels.ops.semantic_feedback.portable import feedback_rows

feedback_kernels = pytest.importorskip(
    "resclip_kernels.ops.semantic_feedback.triton", reason="the kernels need triton"
)
kernels = pytest.importorskip("resclip_kernels.ops.proxy_attention.triton")

DEVICE = kernel_device()
FUSED = ("torch", "triton")
fused = pytest.mark.parametrize("implementation", FUSED)
every = pytest.mark.parametrize("implementation", (*FUSED, "reference"))
with_and_without_feedback = pytest.mark.parametrize("fed_back", (False, True))
VOC21 = {"feedback_weight": 0.7, "feedback_temperature": 2.2}
CHUNK = ["proxy_weights_kernel", "proxy_product_kernel"]
# Values resized, or the matrix that resizes them and then CLIP's values.
KERNELS = (
    ["proxy_positions_kernel", "proxy_values_kernel", *CHUNK],
    ["proxy_positions_kernel", "proxy_values_kernel", *CHUNK, "proxy_values_kernel", CHUNK[1]],
)


@pytest.fixture(autouse=True)
def tiles_of_one_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """The matrix kernel's tiles are of the attention's shape: BLAS adds in an order that depends on the shape.

    Else the same entry of Ŝ may round to float16 differently in the two.
    """
    take_tiles(monkeypatch, Target("interpreter", 0))


def take_tiles(monkeypatch: pytest.MonkeyPatch, target: Target) -> None:
    """Give the matrix kernel the tiles that the attention has on a target."""
    for name, dtype in (("FLOAT_BLOCKS", torch.float32), ("HALF_BLOCKS", torch.float16)):
        tile = kernels.score_blocks(dtype, target, feedback=True)
        blocks = feedback_kernels.Blocks(tile.rows, tile.columns)
        monkeypatch.setattr(feedback_kernels, name, blocks)


class Inputs(NamedTuple):
    """Arguments of `proxy_attention` whose map can be compared between dtypes."""

    features: Tensor
    value: Tensor
    grid: tuple[int, int]
    feedback: SemanticFeedback | None
    options: dict[str, float | None]

    def run(self, implementation: str, **changes: Any) -> Tensor:
        arguments = {"grid": self.grid, "feedback": self.feedback, **self.options, **changes}
        return proxy_attention(
            self.features, self.value, implementation=implementation, **arguments
        )

    def to(self, dtype: torch.dtype) -> Inputs:
        return self._replace(features=self.features.to(dtype), value=self.value.to(dtype))

    def with_matrix(self, implementation: str) -> Inputs:
        """With the Ŝ that an implementation forms, for the reference to read."""
        if self.feedback is None:
            return self
        if implementation == "triton":
            dense = feedback_kernels.feedback_matrix(self.feedback, self.features.dtype)
        else:
            images = self.feedback.images()
            dense = torch.cat([feedback_rows(image, 0, image.patches) for image in images])
        return self._replace(feedback=dataclasses.replace(self.feedback, dense=dense))

    def scores(self) -> Tensor:
        """S or, with feedback, S', in float64."""
        options = ProxyAttentionOptions(**self.options)
        score = reference.proxy_score(
            self.features.double(), options.beta, options.gamma, options.cut
        )
        if self.feedback is None:
            return score
        weight, temperature = options.mixing
        bonus = options.weighted(feedback_matrix(self.feedback), self.feedback.options.normalise)
        return temperature * ((1 - weight) * score + bonus)

    def image(self, number: int) -> Inputs:
        """One image alone, with the feedback of its own labels."""
        one = slice(number, number + 1)
        feedback = self.feedback and semantic_feedback(
            self.feedback.labels[one], implementation="torch"
        )
        return self._replace(features=self.features[one], value=self.value[one], feedback=feedback)


def inputs(
    seed: int,
    implementation: str = "torch",
    *,
    size: tuple[int, int] = (5, 7),
    grid: tuple[int, int] = (3, 4),
    batch: int = 2,
    channels: int = 40,
    heads: int = 2,
    width: int = 16,
    dtype: torch.dtype = torch.float32,
    beta: float = 1.2,
    gamma: float = 3.0,
    cut: float | None = None,
    fed_back: bool = False,
    options: dict[str, float] = VOC21,
    **rules: Any,
) -> Inputs:
    """Features with a common part, as a vision model's have, normal values and, for feedback, blobs of labels.

    The map jumps where an entry of S' passes 0, so that one entry within rounding of 0 makes results of two dtypes
    incomparable. Inputs are therefore drawn again, by a counter and with β a little higher each time, until every
    entry of the float64 map is at least 4e-6·γ·τ_s away from 0: some 30 roundings of a cosine in float32, in which
    every implementation forms it. With a cut every cosine is as far away from that as well.
    """
    for attempt in range(200):
        generator = torch.Generator().manual_seed(seed + attempt)
        common = torch.randn(batch, channels, 1, 1, generator=generator)
        features = (common + torch.randn(batch, channels, *size, generator=generator)).to(DEVICE)
        value = torch.randn(batch, heads, grid[0] * grid[1], width, generator=generator).to(DEVICE)
        drawn: dict[str, Any] = {"beta": beta + attempt / 1000, "gamma": gamma, "cut": cut}
        state = None
        if fed_back:
            labels = label_map(seed + attempt, batch=batch, grid=size).to(DEVICE)
            state = semantic_feedback(labels, implementation="torch", **rules)
            drawn |= options
        given = Inputs(features, value, grid, state, drawn).to(dtype)
        scores = given.with_matrix(implementation).scores()
        margin = 4e-6 * gamma * drawn.get("feedback_temperature", 1.0)
        if cut is not None:
            cosines = reference.proxy_score(given.features.double(), 0.0, 1.0)
            if (cosines - cut).abs().min() < 4e-6:
                continue
        if scores.numel() == 0 or scores.abs().min() > margin:
            return given
    raise AssertionError(f"no inputs away from the threshold in 200 draws from seed {seed}")


def check(given: Inputs, implementation: str) -> list[str]:
    """The names of the op's own kernels, once the result is within its budget."""
    with watch() as watcher:
        got = given.run(implementation)
    ran = [name for name in watcher.names() if name.startswith("proxy")]
    if implementation == "triton" and given.options["cut"] is not None:
        ran.remove("proxy_cut_sums_kernel")
    assert ran in (KERNELS if implementation == "triton" else ([],))
    known = given.with_matrix(implementation)
    check_budget(got, known.run("reference"), known.to(torch.float64).run("reference"))
    return ran


def flat_state(labels: Tensor) -> SemanticFeedback:
    """Ŝ of ones and zeros: equal labels."""
    return semantic_feedback(
        labels.to(DEVICE),
        connectivity=None,
        smoothing_std=0,
        normalise=False,
        implementation="torch",
    )


@with_and_without_feedback
@pytest.mark.parametrize(("implementation", "dtype"), fused_dtypes(), ids=str)
def test_dtypes_are_within_budget(seed: int, implementation: str, dtype, fed_back: bool) -> None:
    check(inputs(seed, implementation, dtype=dtype, fed_back=fed_back), implementation)


@pytest.mark.parametrize(
    "case",
    # A shape or a number decides what is padded and masked, whatever the dtype: each in float32, where the budget is
    # tightest.
    [
        pytest.param({"channels": 130}, id="channels-past-two-blocks"),
        pytest.param({"size": (3, 4)}, id="same-grid-no-resizing"),
        pytest.param({"size": (1, 1), "grid": (1, 1), "heads": 1, "width": 5}, id="one-position"),
        pytest.param({"size": (2, 3), "grid": (5, 6)}, id="coarser-than-clip"),
        pytest.param({"size": (1, 9), "grid": (1, 4), "width": 24}, id="one-row"),
        pytest.param({"size": (9, 15), "channels": 64, "batch": 1}, id="135-over-a-padded-block"),
        pytest.param({"heads": 7, "width": 64, "batch": 1}, id="448-columns-two-groups"),
        pytest.param({"channels": 1}, id="one-channel-all-alike"),
        pytest.param({"gamma": 0.01, "beta": 0.5}, id="flat"),
        pytest.param({"gamma": 40.0, "beta": 1.5}, id="sharp"),
        pytest.param({"beta": -1.0}, id="nothing-under-the-threshold"),
    ],
)
def test_shapes_and_numbers_are_within_budget(seed: int, case: dict[str, Any]) -> None:
    given = inputs(seed, **case)
    for implementation in FUSED:
        check(given, implementation)


@pytest.mark.parametrize(
    "case",
    [
        # Of one position the reference's weight is 1 without any error to measure the kernel's by.
        pytest.param({"size": (1, 3), "grid": (1, 1), "heads": 1, "width": 5}, id="few-positions"),
        pytest.param({"size": (7, 19), "batch": 1, "heads": 1}, id="133-over-a-padded-block"),
        pytest.param({"size": (1, 33), "grid": (1, 4), "batch": 1}, id="one-row-past-a-tile"),
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
def test_feedback_is_within_budget(seed: int, case: dict[str, Any]) -> None:
    for implementation in FUSED:
        check(inputs(seed, implementation, fed_back=True, **case), implementation)


@pytest.mark.parametrize(
    ("implementation", "target"),
    [("torch", None), ("triton", Target("cuda", 80)), ("triton", Target("cuda", 90))],
    ids=str,
)
def test_features_and_values_may_differ_in_dtype(
    seed, implementation: str, target, monkeypatch
) -> None:
    if target is not None:
        take_tiles(monkeypatch, target)
    for features, value in ((torch.float32, torch.float16), (torch.float16, torch.float32)):
        given = inputs(seed, implementation, batch=1, dtype=features, fed_back=True)
        with watch(target=target):
            check(given._replace(value=given.value.to(value)), implementation)


@every
def test_a_very_sharp_map_leaves_every_position_its_own_value(
    seed: int, implementation: str
) -> None:
    # exp(γ·(s − 1)) with γ = 1e9: a cosine that rounds to just above 1 must not run over.
    for dtype in (torch.float32, torch.float16):
        given = inputs(seed, size=(3, 4), dtype=dtype)
        got = given.run(implementation, gamma=1e9)
        # A weight of 1 by three TF32 products leaves a float32 value 22 of its bits.
        tolerance = 2.0**-21 if dtype == torch.float32 and implementation == "triton" else 0.0
        torch.testing.assert_close(got, given.value, rtol=tolerance, atol=0.0)


@every
def test_a_position_with_nothing_left_attends_to_itself(seed: int, implementation: str) -> None:
    # β so high that even a position's cosine with itself, 1, lies under the threshold.
    given = inputs(seed, size=(3, 4), batch=1)
    assert torch.equal(given.run(implementation, beta=1e3), given.value)
    # One position without length: mean(X Xᵀ) = (11 / 12)² = 0.84 stays under the others' 1, and its row is its own.
    features = torch.ones(1, 8, 3, 4, device=DEVICE)
    features[..., 1, 2] = 0.0
    value = given.value
    output = proxy_attention(features, value, grid=(3, 4), beta=1.1, implementation=implementation)
    others = [position for position in range(12) if position != 6]
    mean = value[:, :, others].mean(dim=2, keepdim=True).expand(-1, -1, 11, -1)
    assert torch.allclose(output[:, :, others], mean, atol=1e-6)
    assert torch.equal(output[:, :, 6], value[:, :, 6])


@every
def test_positions_without_length_are_all_alike(implementation: str) -> None:
    value = torch.randn(1, 2, 12, 4, device=DEVICE)
    output = proxy_attention(
        torch.zeros(1, 8, 3, 4, device=DEVICE),
        value,
        grid=(3, 4),
        gamma=500.0,
        implementation=implementation,
    )
    assert torch.allclose(output, value.mean(dim=2, keepdim=True).expand_as(value), atol=1e-6)


@every
def test_weight_0_at_temperature_1_is_no_feedback(seed: int, implementation: str) -> None:
    off = {"feedback_weight": 0.0, "feedback_temperature": 1.0}
    given = inputs(seed, options=off, fed_back=True, size=(3, 4), batch=1)
    plain = given.run(implementation, feedback=None)
    torch.testing.assert_close(given.run(implementation), plain, rtol=1e-5, atol=1e-6)
    # And a temperature alone is a sharper γ.
    sharper = given.run(implementation, feedback=None, gamma=6.0)
    warmer = given.run(implementation, feedback_temperature=2.0)
    torch.testing.assert_close(warmer, sharper, rtol=1e-5, atol=2e-6)


@every
def test_weight_1_attends_by_the_labels_alone(seed: int, implementation: str) -> None:
    given = inputs(seed, fed_back=True, size=(3, 4))
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


@every
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


@every
def test_rows_sum_to_one_and_length_does_not_matter(seed: int, implementation: str) -> None:
    given = inputs(seed)
    ones = given._replace(value=torch.ones_like(given.value)).run(implementation)
    assert torch.allclose(ones, torch.ones_like(ones), atol=1e-6)
    # Powers of two change no digit.
    exponent = torch.arange(35, device=DEVICE).view(5, 7) % 7 - 3
    scaled = given._replace(features=given.features * 2.0**exponent)
    assert torch.allclose(given.run(implementation), scaled.run(implementation), atol=1e-6)


@pytest.mark.parametrize(
    ("implementation", "dtype", "case"),
    [
        ("torch", torch.float32, {}),
        ("triton", torch.float32, {}),
        ("torch", torch.float16, {"fed_back": True}),
        ("triton", torch.float16, {"fed_back": True}),
        ("triton", torch.bfloat16, {"size": (9, 15), "channels": 70, "batch": 1}),
        # Entries that were cut lie above the threshold, so that they have a share.
        ("torch", torch.float32, {"beta": -0.5}),
        ("triton", torch.float32, {"beta": -0.5}),
        ("torch", torch.float16, {"beta": -0.5, "cut": -0.1, "size": (1, 1), "grid": (1, 1)}),
        ("triton", torch.float32, {"beta": 0.5, "cut": -0.1, "size": (1, 9), "grid": (1, 4)}),
    ],
    ids=str,
)
def test_a_cut_is_within_budget(seed: int, implementation: str, dtype, case) -> None:
    check(inputs(seed, implementation, dtype=dtype, **{"cut": 0.5, **case}), implementation)


@every
def test_a_cut_by_hand(implementation: str) -> None:
    # Cosines: 1, and 0.8 and 0.6 of neighbours; with a cut at 0.7 that of 0.6 counts as 0 like that of the ends.
    features = torch.tensor([[1.0, 0.8, 0], [0, 0.6, 1]], device=DEVICE).view(1, 2, 1, 3)
    value = torch.eye(3, device=DEVICE).view(1, 1, 3, 3)
    call: dict[str, Any] = {"grid": (1, 3), "cut": 0.7, "gamma": 2.0}
    mean = (3 + 2 * 0.8) / 9
    for beta in (1.2, -1.0):
        got = proxy_attention(features, value, beta=beta, implementation=implementation, **call)
        score = 2.0 * (torch.tensor([[1, 0.8, 0], [0.8, 1, 0], [0, 0, 1]]) - beta * mean)
        expected = score.masked_fill(score < 0, -torch.inf).softmax(dim=1).to(DEVICE)
        torch.testing.assert_close(got[0, 0], expected, rtol=1e-5, atol=1e-6)
    rows = proxy_rows(features, torch.tensor([2, 0]), cut=0.7, gamma=2.0, beta=-1.0)
    torch.testing.assert_close(rows[0], expected[[2, 0]], rtol=1e-5, atol=1e-6)


@fused
def test_a_cut_under_all_entries_changes_nothing(seed: int, implementation: str) -> None:
    given = inputs(seed)
    cut = given.run(implementation, cut=-1.0)
    torch.testing.assert_close(cut, given.run(implementation), rtol=1e-5, atol=1e-6)


def test_the_mean_of_what_a_cut_leaves(seed: int, monkeypatch) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Blocks of 3 of the rows, of which the last is not full.
    monkeypatch.setattr(portable, "ROW_BYTES", 4 * 35 * 3)
    for size, channels in (((1, 1), 3), ((5, 7), 70), ((9, 15), 130)):
        features = torch.randn(2, channels, *size, generator=generator).to(DEVICE)
        features[1, :, 0, 0] = 0.0
        features += 0.5 * features[:, :, :1, :1]
        cosines = reference.proxy_score(features.double(), 0.0, 1.0)
        expected = torch.where(cosines < 0.2, 0.0, cosines).mean(dim=(1, 2))
        blocks = kernels.score_blocks(torch.float32, Target("interpreter", 0), feedback=False)
        positions = kernels.lay_out_positions(features, 128)
        means = [
            kernels.cut_mean(positions, size[0] * size[1], blocks, 0.2),
            torch.stack(
                [portable.mean_similarity(portable.unit_rows(image), 0.2) for image in features]
            ),
        ]
        # One entry within rounding of the cut may fall on either side of it.
        for mean in means:
            assert (mean - expected).abs().max() < 1e-6 + 2 * 0.2 / cosines[0].numel()


@pytest.mark.parametrize("cut", (None, 0.5))
@with_and_without_feedback
def test_row_blocks_do_not_matter(seed: int, fed_back: bool, cut, monkeypatch) -> None:
    given = inputs(seed, fed_back=fed_back, cut=cut, normalise=False)
    whole = given.run("torch")
    monkeypatch.setattr(portable, "ROW_BYTES", 4 * 35 * 8)
    torch.testing.assert_close(given.run("torch"), whole, rtol=1e-5, atol=1e-6)


@with_and_without_feedback
def test_chunks_do_not_change_a_bit(seed: int, fed_back: bool, monkeypatch) -> None:
    # An image of 256 rows: one chunk of both blocks, then one by one.
    given = inputs(
        seed, size=(9, 15), batch=1, channels=8, heads=1, dtype=torch.float16, fed_back=fed_back
    )
    outputs = []
    for chunks in (1, 2):
        monkeypatch.setattr(kernels, "CHUNK_BYTES", 1 << 27 if chunks == 1 else 1)
        with watch() as watcher:
            outputs.append(given.run("triton"))
        assert watcher.names().count("proxy_weights_kernel") == chunks
    assert torch.equal(*outputs)


def test_chunks_are_even_and_within_their_bytes() -> None:
    # 128 blocks of 16,384 positions in float16, 4 MiB each.
    assert kernels.chunk_rows(1 << 14, 1 << 15) == 4096
    # 65 blocks, of which 32 fit: three chunks.
    assert kernels.chunk_rows(65 * 128, 1 << 15) == 22 * 128
    assert kernels.chunk_rows(128, 1 << 40) == 128


@pytest.mark.parametrize("resized", (True, False))
def test_both_ways_to_resize_are_within_budget(seed: int, resized: bool) -> None:
    # Values of 12 cells for 35 positions: 8 columns are fewer than the cells, 256 are more.
    given = inputs(seed, dtype=torch.float16, heads=2, width=4 if resized else 128, batch=1)
    assert check(given, "triton") == KERNELS[0 if resized else 1]


def test_the_mean_of_all_pairs(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for size, channels in (((1, 1), 3), ((5, 7), 70), ((9, 15), 130)):
        features = torch.randn(2, channels, *size, generator=generator).to(DEVICE)
        features[1, :, 0, 0] = 0.0
        mean = kernels.lay_out_positions(features, 128).mean
        rows = F.normalize(features.double().flatten(2), dim=1)
        expected = (rows.mT @ rows).mean(dim=(1, 2))
        torch.testing.assert_close(mean.double(), expected, rtol=1e-6, atol=1e-9)


@with_and_without_feedback
@fused
def test_each_image_is_on_its_own(seed: int, implementation: str, fed_back: bool) -> None:
    given = inputs(seed, size=(3, 4), heads=1, fed_back=fed_back)
    together = given.run(implementation)
    assert torch.equal(given.image(1).run(implementation), together[1:])
    cut = given.run(implementation, cut=0.6)
    assert torch.equal(given.image(1).run(implementation, cut=0.6), cut[1:])
    for name in ("features", "value"):
        spoilt = getattr(given, name).clone()
        spoilt[0].view(-1)[-1] = torch.nan
        output = given._replace(**{name: spoilt}).run(implementation)
        assert torch.equal(output[1], together[1])
        assert output[0].isnan().any()
    if fed_back:
        labels = given.feedback.labels.clone()
        labels[0] = torch.arange(12, device=DEVICE).view(3, 4)
        changed = semantic_feedback(labels, implementation="torch")
        output = given.run(implementation, feedback=changed)
        assert torch.equal(output[1], together[1])
        assert not torch.allclose(output[0], together[0], atol=1e-3)


@fused
def test_views_and_nan_around_them_change_nothing(seed: int, implementation: str) -> None:
    given = inputs(seed)
    expected = given.run(implementation)
    padded = given._replace(features=nan_padded(given.features), value=nan_padded(given.value))
    torch.testing.assert_close(padded.run(implementation), expected, rtol=1e-5, atol=1e-6)
    channels_last = given.features.contiguous(memory_format=torch.channels_last)
    by_token = given.value.transpose(1, 2).contiguous().transpose(1, 2)
    assert not by_token.is_contiguous()
    views = given._replace(features=channels_last, value=by_token).run(implementation)
    torch.testing.assert_close(views, expected, rtol=1e-5, atol=1e-6)
    assert views.transpose(1, 2).is_contiguous()


@fused
def test_outputs_are_written_in_full(seed: int, implementation: str) -> None:
    given = inputs(seed, channels=70, heads=3, width=20)
    expected = given.run(implementation)
    with spoilt_memory():
        assert torch.equal(given.run(implementation), expected)


@every
def test_batch_0_and_no_head(implementation: str) -> None:
    for batch, heads in ((0, 2), (2, 0)):
        features = torch.ones(batch, 8, 4, 4, device=DEVICE)
        value = torch.ones(batch, heads, 6, 5, device=DEVICE)
        output = proxy_attention(features, value, grid=(2, 3), implementation=implementation)
        assert output.shape == (batch, heads, 16, 5)


@pytest.mark.parametrize(
    ("target", "dtype"),
    [
        (Target("cuda", 80), torch.float16),
        (Target("cuda", 90), torch.float16),
        (Target("cuda", 90), torch.float32),
    ],
    ids=str,
)
def test_the_tiles_of_both_kinds_of_target(seed: int, target: Target, dtype: torch.dtype) -> None:
    # 240 columns, whose tail fills part of a tile; 63 positions, of which wide tiles make four times as many.
    for size in ((9, 15), (7, 9)):
        with watch(target=target):
            check(inputs(seed, size=size, heads=3, width=80, batch=1, dtype=dtype), "triton")


@pytest.mark.parametrize(
    ("target", "dtype", "fed_back"),
    [
        (Target("cuda", 80), torch.float32, False),
        (Target("cuda", 90), torch.bfloat16, True),
        (Target("hip", "gfx942"), torch.float16, False),
    ],
    ids=str,
)
def test_launches_need_no_values_and_no_map(target, dtype: torch.dtype, fed_back: bool) -> None:
    labels = torch.empty(2, 200, 200, dtype=torch.int64, device="meta")
    with watch(execute=False, target=target) as watcher:
        proxy_attention(
            torch.empty(2, 768, 200, 200, dtype=dtype, device="meta"),
            torch.empty(2, 12, 28 * 28, 64, dtype=dtype, device="meta"),
            grid=(28, 28),
            feedback=semantic_feedback(labels, implementation="triton") if fed_back else None,
            implementation="triton",
        )
    for launched in watcher.launches:
        if launched.kernel.__name__.startswith("proxy"):
            # One bit a pair, and no more of n²: a map of float16 would take 16.
            bits = getattr(launched.arguments.get("feedback"), "far", None)
            assert bits is None or bits.nbytes == 2 * 200**4 / 8
            sizes = [
                tensor.nbytes for tensor in tensors_of(launched.arguments) if tensor is not bits
            ]
            assert max(sizes) <= max(1 << 27, 2 * (200 * 200 + 256) * 768 * dtype.itemsize)
    weighing, multiplying = watcher.launches[-2:]
    assert 128 % weighing.constants["BLOCK_M"] == 128 % multiplying.constants["BLOCK_M"] == 0
    padded = weighing.arguments["padded_positions"]
    assert padded % weighing.constants["BLOCK_N"] == padded % multiplying.constants["BLOCK_N"] == 0
    assert multiplying.constants["RIGHT_COLUMNS"] % multiplying.constants["BLOCK_D"] == 0


def tensors_of(argument: Any) -> list[Tensor]:
    """The tensors among a kernel's arguments, in tuples and out of them."""
    if isinstance(argument, Tensor):
        return [argument]
    inner = argument.values() if isinstance(argument, Mapping) else argument
    return (
        [tensor for part in inner for tensor in tensors_of(part)]
        if isinstance(argument, (Mapping, tuple))
        else []
    )


@pytest.mark.parametrize(
    ("name", "implementation"),
    # The budgets hold torch to the reference, too.
    [
        ("proxyclip_same_grid", "reference"),
        ("proxyclip_finer_grid", "torch"),
        ("proxyclip_finer_grid", "triton"),
    ],
)
def test_recorded_tokens(name: str, implementation: str) -> None:
    recorded = arrays(name)
    visual, given = tower(), []
    final = visual.transformer.resblocks[-1]
    final.register_forward_pre_hook(lambda _, arguments: given.append(arguments[0]))
    with torch.no_grad():
        visual(recorded["image"][None])
        projected = F.linear(
            final.ln_1(given[0][:, 1:]), final.attn.in_proj_weight, final.attn.in_proj_bias
        )
        value = projected.unflatten(2, (3, 2, -1))[:, :, 2].transpose(1, 2)  # [B, A, h * w, d]
        attended = proxy_attention(
            recorded["features"][None].to(DEVICE),
            value.to(DEVICE),
            grid=(14, 14),
            beta=recorded["beta"].item(),
            gamma=recorded["gamma"].item(),
            implementation=implementation,
        ).cpu()
        tokens = final.attn.out_proj(attended.transpose(1, 2).flatten(2))
        tokens = (visual.ln_post(tokens) @ visual.proj)[0]
    error = tokens - recorded["tokens"]
    assert error.norm() <= 1e-5 * recorded["tokens"].norm()
    assert error.abs().max() <= 1e-5 * recorded["tokens"].abs().max()


def test_what_the_kernel_cannot_run_is_refused_and_auto_takes_torch(seed: int) -> None:
    given = inputs(seed, size=(2, 3), batch=1, fed_back=True)
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


@with_and_without_feedback
def test_rows_of_the_map(seed: int, fed_back: bool) -> None:
    given = inputs(seed, fed_back=fed_back)
    rows = torch.tensor([34, 0, 17, 17])
    found = proxy_rows(given.features, rows, feedback=given.feedback, **given.options)
    assert found.shape == (2, 4, 35)
    torch.testing.assert_close(found.sum(dim=2), torch.ones_like(found[..., 0]))
    assert torch.equal(found[:, 2], found[:, 3])
    value = torch.eye(35, device=DEVICE).expand(2, 1, 35, 35)
    given = given._replace(value=value, grid=(5, 7))
    # A row at a time, Ŝ may be rounded to float16 the other way: 2^-11 of 0.7, times τ_s.
    torch.testing.assert_close(found, given.run("torch")[:, 0, rows], rtol=2e-3, atol=1e-6)
    plain = given.run("torch", feedback=None)[:, 0, rows]
    assert torch.allclose(found, plain) != fed_back
    assert proxy_rows(given.features.half(), rows[:0]).shape == (2, 0, 35)
    assert proxy_rows(given.features.double(), rows).dtype is torch.float64
    assert proxy_rows(given.features.half(), rows).dtype is torch.float32


FEATURES, VALUE = torch.rand(1, 8, 4, 4), torch.rand(1, 2, 6, 5)


@pytest.mark.parametrize(
    ("features", "value", "arguments", "error", "message"),
    [
        (FEATURES[0], VALUE, {}, ValueError, "features must have 4 dimensions"),
        (FEATURES, VALUE[0], {}, ValueError, "value must have 4 dimensions"),
        (FEATURES.int(), VALUE, {}, TypeError, "features must be floating point"),
        ([1.0], VALUE, {}, TypeError, "features must be a torch.Tensor"),
        (FEATURES, VALUE, {"grid": (2, 2)}, ValueError, "4 values without.*value has 6"),
        (
            FEATURES,
            VALUE,
            {"grid": (0, 6)},
            ValueError,
            r"grid must be .* at least 1 each; got \(0, 6\)",
        ),
        (FEATURES[:, :0], VALUE, {}, ValueError, "at least one channel"),
        (FEATURES.expand(2, -1, -1, -1), VALUE, {}, ValueError, "same number of images"),
        (FEATURES.to("meta"), VALUE, {}, ValueError, "one device"),
        (FEATURES, VALUE, {"beta": float("nan")}, ValueError, "beta must be a finite"),
        (FEATURES, VALUE, {"gamma": float("inf")}, ValueError, "gamma must be a finite"),
        (FEATURES, VALUE, {"gamma": 0.0}, ValueError, "gamma.*above 0"),
        (FEATURES, VALUE, {"cut": 1.5}, ValueError, "cut must be a finite number from -1 to 1"),
        (FEATURES, VALUE, {"cut": "0.4"}, TypeError, "cut must be a number; got '0.4'"),
    ],
)
def test_errors_say_what_was_expected(features, value, arguments, error, message) -> None:
    with pytest.raises(error, match=message):
        proxy_attention(features, value, **{"grid": (2, 3), **arguments})


TWO, TWO_VALUES = torch.rand(2, 8, 3, 4), torch.rand(2, 2, 6, 5)
LABELS = torch.zeros(2, 3, 4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (LABELS.mT, {}, r"2 images of \(4, 3\) patches; got 2 of \(3, 4\) in features"),
        (LABELS[:1], {}, "1 images of .* patches; got 2 of .* in features"),
        (LABELS, {"feedback_weight": 1.1}, "feedback_weight must lie between 0 and 1; got 1.1"),
        (LABELS, {"feedback_temperature": 0.0}, "feedback_temperature.*above 0"),
    ],
)
def test_feedback_that_does_not_fit(labels: Tensor, options: dict[str, Any], message: str) -> None:
    state = semantic_feedback(labels, implementation="torch")
    with pytest.raises(ValueError, match=message):
        proxy_attention(TWO, TWO_VALUES, grid=(2, 3), feedback=state, **options)
    with pytest.raises(ValueError, match=message):
        proxy_rows(TWO, torch.tensor([0]), feedback=state, **options)


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
        proxy_rows(TWO, rows)

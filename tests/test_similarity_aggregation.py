"""The aggregation over similar tokens: against float64 and numbers by hand, and its properties."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from kernel_support import check_budget, fused_dtypes, kernel_device, nan_padded, spoilt_memory
from torch import Tensor

from resclip_kernels import SimilarityAggregationOptions
from resclip_kernels.launch import Target, watch
from resclip_kernels.ops.similarity_aggregation import portable, reference, similarity_aggregation

kernels = pytest.importorskip(
    "resclip_kernels.ops.similarity_aggregation.triton", reason="the kernels need triton"
)
proxy_kernels = pytest.importorskip("resclip_kernels.ops.proxy_attention.triton")

DEVICE = kernel_device()
FUSED = ("torch", "triton")
fused = pytest.mark.parametrize("implementation", FUSED)
every = pytest.mark.parametrize("implementation", (*FUSED, "reference"))
KERNELS = [
    "proxy_positions_kernel",
    "proxy_values_kernel",
    "aggregation_weights_kernel",
    "proxy_product_kernel",
]


class Inputs(NamedTuple):
    """Arguments of `similarity_aggregation` whose weights can be compared between dtypes."""

    features: Tensor
    value: Tensor
    options: dict[str, Any]

    def run(self, implementation: str, **changes: Any) -> Tensor:
        options = {**self.options, **changes}
        return similarity_aggregation(
            self.features, self.value, implementation=implementation, **options
        )

    def to(self, dtype: torch.dtype) -> Inputs:
        return self._replace(features=self.features.to(dtype), value=self.value.to(dtype))


def inputs(
    seed: int,
    *,
    tokens: int = 35,
    batch: int = 2,
    channels: int = 40,
    width: int = 24,
    dtype: torch.dtype = torch.float32,
    threshold: float = 0.4,
    normalise: bool = True,
) -> Inputs:
    """Tokens with a common part, of which some two are alike and others not, and normal values.

    The weights jump where a similarity passes the threshold, so inputs are drawn again, with a threshold a little
    higher each time, until none is within 4e-6 of it: some 30 roundings of a cosine in float32.
    """
    for attempt in range(200):
        generator = torch.Generator().manual_seed(seed + attempt)
        common = torch.randn(batch, 1, channels, generator=generator)
        features = 0.8 * common + torch.randn(batch, tokens, channels, generator=generator)
        value = torch.randn(batch, tokens, width, generator=generator).to(DEVICE, dtype)
        given = features.to(DEVICE, dtype)
        drawn = threshold + attempt / 1000
        apart = (reference.token_similarity(given.double()) - drawn).abs()
        if apart.min() > 4e-6:
            return Inputs(given, value, {"threshold": drawn, "normalise": normalise})
    raise AssertionError(f"no inputs away from the threshold in 200 draws from seed {seed}")


def check(given: Inputs, implementation: str) -> None:
    with watch() as watcher:
        got = given.run(implementation)
    assert watcher.names() == (KERNELS if implementation == "triton" else [])
    check_budget(got, given.run("reference"), given.to(torch.float64).run("reference"))


@pytest.mark.parametrize("normalise", (True, False))
@pytest.mark.parametrize(("implementation", "dtype"), fused_dtypes(), ids=str)
def test_dtypes_are_within_budget(seed: int, implementation: str, dtype, normalise: bool) -> None:
    given = inputs(seed, dtype=dtype, normalise=normalise)
    weights = reference.aggregation_weights(
        given.features.double(), SimilarityAggregationOptions(**given.options)
    )
    assert 0.1 < (weights > 0).double().mean() < 0.9  # Some are alike, and others not.
    check(given, implementation)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param({"tokens": 1, "width": 5}, id="one-token"),
        pytest.param({"tokens": 133, "batch": 1}, id="133-over-a-padded-block"),
        pytest.param({"channels": 130}, id="channels-past-two-blocks"),
        pytest.param({"width": 200, "batch": 1}, id="width-past-a-block"),
        pytest.param({"channels": 1}, id="one-channel-all-alike-or-opposite"),
        pytest.param({"threshold": -1.0, "normalise": False}, id="nothing-under-the-threshold"),
        pytest.param({"threshold": 0.99}, id="every-token-alone"),
    ],
)
def test_shapes_and_numbers_are_within_budget(seed: int, case: dict[str, Any]) -> None:
    given = inputs(seed, **case)
    for implementation in FUSED:
        check(given, implementation)


@every
def test_three_tokens_by_hand(implementation: str) -> None:
    # Cosines: 0.6 of the first two, 0.8 of the last two, 0 of the first and the last; a fourth has no length.
    features = torch.tensor([[[5.0, 0], [0.6, 0.8], [0, 0.25], [0, 0]]], device=DEVICE)
    value = torch.tensor([[[1.0], [10], [100], [1000]]], device=DEVICE)
    call = {"threshold": 0.7, "implementation": implementation}
    sums = similarity_aggregation(features, value, normalise=False, **call)
    expected = torch.tensor([1.0, 10 + 80, 100 + 8, 0], device=DEVICE)
    torch.testing.assert_close(sums[0, :, 0], expected, rtol=1e-6, atol=1e-6)
    means = similarity_aggregation(features, value, **call)
    expected = expected / (torch.tensor([1.0, 1.8, 1.8, 0], device=DEVICE) + 1e-6)
    torch.testing.assert_close(means[0, :, 0], expected, rtol=1e-6, atol=1e-6)
    options = SimilarityAggregationOptions(threshold=0.7)
    by_object = similarity_aggregation(features, value, options, implementation=implementation)
    assert torch.equal(by_object, means)


@every
def test_weights_add_up_to_one_and_length_does_not_matter(seed: int, implementation: str) -> None:
    given = inputs(seed)
    ones = given._replace(value=torch.ones_like(given.value)).run(implementation)
    assert torch.allclose(ones, torch.ones_like(ones), atol=3e-6)
    # Powers of two change no digit.
    exponent = torch.arange(35, device=DEVICE)[:, None] % 7 - 3
    scaled = given._replace(features=given.features * 2.0**exponent)
    assert torch.allclose(given.run(implementation), scaled.run(implementation), atol=1e-6)


@pytest.mark.parametrize("normalise", (True, False))
def test_row_blocks_and_chunks_do_not_matter(seed: int, normalise: bool, monkeypatch) -> None:
    given = inputs(seed, tokens=133, batch=1, width=8, dtype=torch.float16, normalise=normalise)
    torch_whole, triton_whole = given.run("torch"), given.run("triton")
    monkeypatch.setattr(portable, "ROW_BYTES", 4 * 133 * 8)
    torch.testing.assert_close(given.run("torch"), torch_whole, rtol=1e-3, atol=1e-3)
    monkeypatch.setattr(proxy_kernels, "CHUNK_BYTES", 1)
    with watch() as watcher:
        assert torch.equal(given.run("triton"), triton_whole)
    assert watcher.names().count("aggregation_weights_kernel") == 2


@fused
def test_each_image_is_on_its_own(seed: int, implementation: str) -> None:
    given = inputs(seed, tokens=20)
    together = given.run(implementation)
    alone = given._replace(features=given.features[1:], value=given.value[1:])
    assert torch.equal(alone.run(implementation), together[1:])
    for name in ("features", "value"):
        spoilt = getattr(given, name).clone()
        spoilt[0].view(-1)[-1] = torch.nan
        output = given._replace(**{name: spoilt}).run(implementation)
        assert torch.equal(output[1], together[1])
        assert output[0].isnan().any()


@fused
def test_views_nan_around_them_and_unwritten_memory_change_nothing(
    seed: int, implementation: str
) -> None:
    given = inputs(seed, channels=70, width=72)
    expected = given.run(implementation)
    padded = given._replace(features=nan_padded(given.features), value=nan_padded(given.value))
    with spoilt_memory():
        torch.testing.assert_close(padded.run(implementation), expected, rtol=1e-5, atol=1e-6)
    channels_first = given.features.mT.contiguous().mT
    assert not channels_first.is_contiguous()
    views = given._replace(features=channels_first).run(implementation)
    torch.testing.assert_close(views, expected, rtol=1e-5, atol=1e-6)


@every
def test_no_image_no_token_and_no_width(implementation: str) -> None:
    for batch, tokens, width in ((0, 3, 5), (2, 0, 5), (2, 3, 0)):
        features = torch.ones(batch, tokens, 8, device=DEVICE)
        value = torch.ones(batch, tokens, width, device=DEVICE)
        output = similarity_aggregation(
            features, value, threshold=0.4, implementation=implementation
        )
        assert output.shape == value.shape


@pytest.mark.parametrize("target", [Target("cuda", 90), Target("hip", "gfx942")], ids=str)
def test_launches_need_no_values_and_no_map(target: Target) -> None:
    tokens = torch.empty(1, 40_000, 768, dtype=torch.float16, device="meta")
    with watch(execute=False, target=target) as watcher:
        similarity_aggregation(tokens, tokens, threshold=0.4, implementation="triton")
    sizes = [
        tensor.nbytes
        for launched in watcher.launches
        for argument in launched.arguments.values()
        for tensor in (argument if isinstance(argument, tuple) else (argument,))
        if isinstance(tensor, Tensor)
    ]
    assert max(sizes) <= max(1 << 27, 2 * (40_000 + 256) * 768)


TOKENS = torch.rand(2, 6, 8)


@pytest.mark.parametrize(
    ("features", "value", "options", "error", "message"),
    [
        (TOKENS[0], TOKENS, {}, ValueError, "features must have 3 dimensions"),
        (TOKENS, TOKENS[0], {}, ValueError, "value must have 3 dimensions"),
        (TOKENS.int(), TOKENS, {}, TypeError, "features must be floating point"),
        (TOKENS, TOKENS[:, :5], {}, ValueError, "same number of tokens n; got 6 and 5"),
        (TOKENS[:1], TOKENS, {}, ValueError, "same number of images; got 1 and 2"),
        (TOKENS[..., :0], TOKENS, {}, ValueError, "at least one channel"),
        (TOKENS, TOKENS, {"threshold": 1.5}, ValueError, "threshold must be .* from -1 to 1"),
        (TOKENS, TOKENS, {"threshold": "0.4"}, TypeError, "threshold must be a number"),
        (TOKENS, TOKENS, {"normalise": 1}, TypeError, "normalise must be True or False; got 1"),
        (TOKENS, TOKENS, {"threshold": None}, TypeError, "threshold must be a number; got None"),
    ],
)
def test_errors_say_what_was_expected(features, value, options, error, message) -> None:
    with pytest.raises(error, match=message):
        similarity_aggregation(features, value, **{"threshold": 0.4, **options})


def test_the_threshold_has_to_be_given() -> None:
    with pytest.raises(TypeError, match="expected threshold=, or options="):
        similarity_aggregation(TOKENS, TOKENS)


def test_memory_is_linear_in_the_tokens() -> None:
    """What the published table says: past a fixed block of rows, a token takes as much of many as of few."""
    memory = pytest.importorskip("benchmarks.aggregation_memory")
    for call in memory.CALLS.values():
        few, many = (memory.peak_of(call, tokens) / tokens for tokens in (8192, 32_768))
        assert 0.7 * few < many < memory.MOST_GROWTH * few
    map_in_memory = {"implementation": "reference", "threshold": 0.4}
    tokens = torch.empty(1, 8192, 8, device="meta")
    with memory.LiveTensors() as live:
        similarity_aggregation(tokens, tokens, **map_in_memory)
    assert live.peak > 4 * 8192**2

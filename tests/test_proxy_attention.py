"""The proxy attention: against the materialised formula in float64, recorded outputs, and its properties."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from golden import arrays, tower
from kernel_support import check_budget, fused_dtypes, kernel_device, nan_padded

from resclip_kernels.launch import Target, watch
from resclip_kernels.ops.proxy_attention import portable, proxy_attention, reference

DEVICE = kernel_device()
IMPLEMENTATIONS = ("torch", "triton", "reference")
FUSED = ("torch", "triton")
KERNELS = [
    "proxy_positions_kernel",
    "proxy_mean_kernel",
    "proxy_values_kernel",
    "proxy_attention_kernel",
]


class Inputs(NamedTuple):
    """Arguments of `proxy_attention` whose map can be compared between dtypes."""

    features: torch.Tensor
    value: torch.Tensor
    grid: tuple[int, int]
    beta: float

    def run(self, implementation: str, **changes: Any) -> torch.Tensor:
        return proxy_attention(
            self.features,
            self.value,
            grid=self.grid,
            implementation=implementation,
            **{"beta": self.beta, **changes},
        )

    def to(self, dtype: torch.dtype) -> Inputs:
        return self._replace(features=self.features.to(dtype), value=self.value.to(dtype))


def inputs(
    seed: int,
    *,
    channels: int = 40,
    size: tuple[int, int] = (5, 7),
    grid: tuple[int, int] = (3, 4),
    heads: int = 2,
    width: int = 16,
    batch: int = 2,
    dtype: torch.dtype = torch.float32,
    gamma: float = 3.0,
) -> Inputs:
    """Features with a common part, as a vision model's have, and normal values.

    The map jumps where an entry of A passes 0, so that one entry within rounding of 0 makes results of two dtypes
    incomparable. Inputs are therefore drawn again, by a counter and with β a little higher each time, until every
    entry of the float64 map is at least 4e-6·γ away from 0: some 30 roundings of a cosine in float32, in which every
    implementation forms it.
    """
    for attempt in range(200):
        generator = torch.Generator().manual_seed(seed + attempt)
        common = torch.randn(batch, channels, 1, 1, generator=generator)
        features = (common + torch.randn(batch, channels, *size, generator=generator)).to(dtype)
        value = torch.randn(batch, heads, grid[0] * grid[1], width, generator=generator).to(dtype)
        beta = 1.2 + attempt / 1000
        score = reference.proxy_score(features.double(), beta, gamma)
        if score.numel() == 0 or score.abs().min() > 4e-6 * gamma:
            return Inputs(features.to(DEVICE), value.to(DEVICE), grid, beta)
    raise AssertionError(f"no inputs away from the threshold in 200 draws from seed {seed}")


def check(given: Inputs, implementation: str, **changes: Any) -> None:
    oracle = given.to(torch.float64).run("reference", **changes)
    with watch() as watcher:
        got = given.run(implementation, **changes)
    assert watcher.names() == (KERNELS if implementation == "triton" else [])
    check_budget(got, given.run("reference", **changes), oracle)


@pytest.mark.parametrize(("implementation", "dtype"), fused_dtypes(), ids=str)
def test_dtypes_are_within_budget(seed: int, dtype: torch.dtype, implementation: str) -> None:
    check(inputs(seed, dtype=dtype), implementation)


@pytest.mark.parametrize(
    "shape",
    # A shape decides what the kernels pad and mask, whatever the dtype: each in float32, where the budget is tightest.
    [
        pytest.param({"channels": 130}, id="channels-past-two-blocks"),
        pytest.param({"size": (3, 4)}, id="same-grid-no-resizing"),
        pytest.param({"size": (1, 1), "grid": (1, 1), "heads": 1, "width": 5}, id="one-position"),
        pytest.param({"size": (2, 3), "grid": (5, 6)}, id="coarser-than-clip"),
        pytest.param({"size": (1, 9), "grid": (1, 4), "width": 24}, id="one-row"),
        pytest.param({"size": (9, 15), "channels": 64, "batch": 1}, id="135-over-a-padded-block"),
        pytest.param({"heads": 7, "width": 64, "batch": 1}, id="448-columns-two-groups"),
        pytest.param({"channels": 1}, id="one-channel-all-alike"),
    ],
)
def test_shapes_are_within_budget(seed: int, shape: dict[str, Any]) -> None:
    given = inputs(seed, **shape)
    for implementation in FUSED:
        check(given, implementation)


@pytest.mark.parametrize(("gamma", "beta"), [(0.01, 0.5), (40.0, 1.5), (3.0, -1.0)])
def test_other_numbers(seed: int, gamma: float, beta: float) -> None:
    for attempt in range(200):
        given = inputs(seed + attempt)
        if reference.proxy_score(given.features.double(), beta, 1.0).abs().min() > 4e-6:
            break
    for implementation in FUSED:
        check(given, implementation, gamma=gamma, beta=beta)


@pytest.mark.parametrize("implementation", FUSED)
def test_features_and_values_may_differ_in_dtype(seed: int, implementation: str) -> None:
    given = inputs(seed)
    given = given._replace(value=given.value.half())
    oracle = given.to(torch.float64).run("reference")
    assert given.run(implementation).dtype is torch.float16
    check_budget(given.run(implementation), given.run("reference"), oracle)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_very_sharp_map_leaves_every_position_its_own_value(
    seed: int, implementation: str
) -> None:
    # exp(γ·(s − 1)) with γ = 1e9: a cosine that rounds to just above 1 must not run over.
    for dtype in (torch.float32, torch.float16):
        given = inputs(seed, size=(3, 4), dtype=dtype)
        assert torch.equal(given.run(implementation, gamma=1e9), given.value)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
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


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
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


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_two_kinds_of_positions_by_hand(implementation: str) -> None:
    # Left half one direction, right half another at a right angle: mean(X Xᵀ) = 1/2, so 1 stays and 0 goes.
    features = torch.zeros(1, 2, 2, 4, device=DEVICE)
    features[:, 0, :, :2] = 3.0
    features[:, 1, :, 2:] = 0.5
    value = torch.arange(8.0, device=DEVICE).view(1, 1, 8, 1)
    output = proxy_attention(features, value, grid=(2, 4), implementation=implementation)
    expected = torch.tensor([2.5, 2.5, 4.5, 4.5, 2.5, 2.5, 4.5, 4.5], device=DEVICE)
    assert torch.allclose(output.flatten(), expected)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_rows_sum_to_one_and_length_does_not_matter(seed: int, implementation: str) -> None:
    given = inputs(seed)
    ones = given._replace(value=torch.ones_like(given.value)).run(implementation)
    assert torch.allclose(ones, torch.ones_like(ones), atol=1e-6)
    # Powers of two change no digit.
    exponent = torch.arange(35, device=DEVICE).view(5, 7) % 7 - 3
    scaled = given._replace(features=given.features * 2.0**exponent)
    assert torch.allclose(given.run(implementation), scaled.run(implementation), atol=1e-6)


def test_row_blocks_do_not_matter(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    given = inputs(seed)
    whole = given.run("torch")
    monkeypatch.setattr(portable, "ROW_BYTES", 4 * 35 * 8)
    torch.testing.assert_close(given.run("torch"), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("implementation", FUSED)
def test_each_image_is_on_its_own(seed: int, implementation: str) -> None:
    given = inputs(seed, size=(3, 4), batch=2, heads=1)
    together = given.run(implementation)
    single = given._replace(features=given.features[1:2], value=given.value[1:2])
    assert torch.equal(single.run(implementation), together[1:2])
    for name in ("features", "value"):
        spoilt = getattr(given, name).clone()
        spoilt[0].view(-1)[-1] = torch.nan
        output = given._replace(**{name: spoilt}).run(implementation)
        assert torch.equal(output[1:], together[1:])
        assert output[0].isnan().any()
    assert given._replace(features=given.features * torch.nan).run(implementation).isnan().all()


@pytest.mark.parametrize("implementation", FUSED)
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
    assert views.is_contiguous()


@pytest.mark.parametrize("implementation", FUSED)
def test_outputs_are_written_in_full(
    seed: int, implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = inputs(seed, channels=70, heads=3, width=20)
    expected = given.run(implementation)
    plain, plain_new = torch.empty, torch.Tensor.new_empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: plain(*a, **k).fill_(torch.nan))
    monkeypatch.setattr(
        torch.Tensor, "new_empty", lambda self, *a, **k: plain_new(self, *a, **k).fill_(torch.nan)
    )
    assert torch.equal(given.run(implementation), expected)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
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
    # 240 columns, whose tail fills part of a tile.
    with watch(target=target):
        check(inputs(seed, size=(9, 15), heads=3, width=80, batch=1, dtype=dtype), "triton")


@pytest.mark.parametrize(
    ("target", "dtype"),
    [(Target("cuda", 80), torch.float32), (Target("hip", "gfx942"), torch.float16)],
    ids=str,
)
def test_launches_need_no_values_and_no_map(target: Target, dtype: torch.dtype) -> None:
    features = torch.empty(2, 768, 200, 200, dtype=dtype, device="meta")
    value = torch.empty(2, 12, 28 * 28, 64, dtype=dtype, device="meta")
    with watch(execute=False, target=target) as watcher:
        proxy_attention(features, value, grid=(28, 28), implementation="triton")
    assert watcher.names() == KERNELS
    largest = max(
        argument.numel()
        for launched in watcher.launches
        for argument in launched.arguments.values()
        if isinstance(argument, torch.Tensor)
    )
    assert largest <= 2 * (200 * 200 + 128) * (768 + 128)
    tiles = watcher.launches[-1].constants
    assert tiles["VALUE_COLUMNS"] % (tiles["TILES"] * tiles["BLOCK_D"]) == 0
    assert tiles["CHANNELS"] % tiles["BLOCK_C"] == 0
    assert 128 % tiles["BLOCK_M"] == 0
    assert 128 % tiles["BLOCK_N"] == 0


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


def test_gradients_take_torch_and_triton_refuses(seed: int) -> None:
    given = inputs(seed, channels=8, size=(2, 3), batch=1)
    value = given.value.requires_grad_()
    features = given.features.requires_grad_()
    with watch() as watcher:
        proxy_attention(features, value, grid=given.grid).square().sum().backward()
    assert watcher.names() == []
    assert torch.isfinite(value.grad).all()
    assert torch.isfinite(features.grad).all()
    with pytest.raises(ValueError, match="requires grad"):
        proxy_attention(features, value, grid=given.grid, implementation="triton")


FEATURES, VALUE = torch.rand(1, 8, 4, 4), torch.rand(1, 2, 6, 5)


@pytest.mark.parametrize(
    ("features", "value", "arguments", "error", "message"),
    [
        (FEATURES[0], VALUE, {}, ValueError, "features must have 4 dimensions"),
        (FEATURES, VALUE[0], {}, ValueError, "value must have 4 dimensions"),
        (FEATURES.int(), VALUE, {}, TypeError, "features must be floating point"),
        ([1.0], VALUE, {}, TypeError, "features must be a torch.Tensor"),
        (FEATURES, VALUE, {"grid": (2, 2)}, ValueError, "4 values without.*value has 6"),
        (FEATURES, VALUE, {"grid": (0, 6)}, ValueError, "height must be at least 1"),
        (FEATURES[:, :0], VALUE, {}, ValueError, "at least one channel"),
        (FEATURES.expand(2, -1, -1, -1), VALUE, {}, ValueError, "same number of images"),
        (FEATURES.to("meta"), VALUE, {}, ValueError, "one device"),
        (FEATURES, VALUE, {"beta": float("nan")}, ValueError, "beta must be a finite"),
        (FEATURES, VALUE, {"gamma": float("inf")}, ValueError, "gamma must be a finite"),
        (FEATURES, VALUE, {"gamma": 0.0}, ValueError, "gamma.*above 0"),
    ],
)
def test_errors_say_what_was_expected(features, value, arguments, error, message) -> None:
    with pytest.raises(error, match=message):
        proxy_attention(features, value, **{"grid": (2, 3), **arguments})

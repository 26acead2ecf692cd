"""The overview: a window's final block that also attends to a coarse pass over the whole image."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from kernel_support import check_budget, kernel_device
from method_support import colours, small_tower, text
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from resclip import RCS, SFR, DenseEncoder
from resclip.encoder.final_block import Coarse, attend_coarse
from resclip.methods.catalogue import Overview
from resclip_kernels import attention_maps

CORRELATIONS = ("qk", "qq", "qq+kk", "xx", "random,projections=3", "kk,layer=2,temperature=0.5")
QUERIES = 4


def encoder(weight: float | None, base: str = "naclip", **changes: Any) -> DenseEncoder:
    overview = None if weight is None else Overview(weight)
    return DenseEncoder(small_tower(), base=base, overview=overview, **changes)


def images(count: int, *size: int) -> Tensor:
    return torch.randn(count, 3, *size)


def coarse_tokens(batch: int, tokens: int, scores: int, dtype: torch.dtype) -> Coarse:
    """As a tower of 2 heads of 16 would make them."""
    *keys, value = torch.randn(scores + 1, batch, 2, tokens, 16).to(dtype)
    return Coarse(tuple(keys), value)


def by_hand(queries: Sequence[Tensor], coarse: Coarse, temperature: float) -> Tensor:
    """The formula of one token after the other, in float64."""
    result = torch.zeros(queries[0].shape, dtype=torch.float64)
    for query, key in zip(queries, coarse.keys, strict=True):
        for index in torch.cartesian_prod(*(torch.arange(size) for size in query.shape[:3])):
            batch, head, row = index.tolist()
            score = key[batch, head].double() @ query[batch, head, row].double()
            weights = (score / (math.sqrt(query.shape[3]) * temperature)).softmax(0)
            result[batch, head, row] += weights @ coarse.value[batch, head].double()
    return result


@pytest.mark.parametrize(
    ("tokens", "scores", "dtype"),
    # Every dtype with the hardest shape (no multiple of a block, a sum of two maps), and the smallest ones in one.
    [
        (37, 2, torch.float32),
        (37, 2, torch.float16),
        (37, 2, torch.bfloat16),
        (1, 1, torch.float16),
        (37, 1, torch.float32),
    ],
)
def test_the_attention_to_coarse_tokens_keeps_its_budget(
    tokens: int, scores: int, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    coarse = coarse_tokens(2, tokens, scores, dtype)
    queries = [torch.randn(2, 2, 11, 16).to(dtype) for _ in range(scores)]
    oracle = by_hand(queries, coarse, 0.7)
    reference = attend_coarse(queries, coarse, 0.7, plain=True)
    check_budget(attend_coarse(queries, coarse, 0.7), reference, oracle)
    # The reference itself: 8 times the rounding of its sums' largest term.
    bound = 8 * torch.finfo(dtype).eps * coarse.value.double().abs().max() * scores
    assert (reference.double() - oracle).abs().max() < bound


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that an operator returns."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple) else (result,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def test_its_memory_is_linear_but_for_the_plain_formula() -> None:
    coarse, query = coarse_tokens(1, 300, 1, torch.float32), torch.randn(1, 2, 200, 16)
    with Largest() as lean:
        attend_coarse([query], coarse, 1.0)
    with Largest() as plain:
        attend_coarse([query], coarse, 1.0, plain=True)
    assert lean.elements < 200 * 300
    assert plain.elements == 2 * 200 * 300


@pytest.mark.parametrize(
    ("base", "implementation"),
    # A prior; a residual, an MLP and a sum of two maps; the reference.
    [("naclip", "torch"), ("sclip", "torch"), ("naclip", "reference")],
)
def test_a_weight_of_0_is_the_plain_method_bit_for_bit(
    base: str, implementation: str, seed: int
) -> None:
    torch.manual_seed(seed)
    pixels, whole, queries = images(2, 64, 96), images(2, 48, 48), text(QUERIES, 32)
    options = {"rcs": RCS(), "sfr": SFR(refine_iterations=1), "implementation": implementation}
    plain = encoder(None, base, **options)(pixels, queries)
    mixed = encoder(0.0, base, **options)
    got = mixed(pixels, queries, mixed.coarse(whole))
    assert torch.equal(got.patches, plain.patches)
    assert torch.equal(got.feedback_labels, plain.feedback_labels)


@pytest.mark.parametrize("correlation", CORRELATIONS)
def test_its_own_tokens_change_nothing_at_any_weight_without_prior(
    correlation: str, seed: int
) -> None:
    """Rows keep their sum whatever the number of scores, with RCS's temperature on top."""
    torch.manual_seed(seed)
    pixels = images(1, 64, 96)
    options = {"correlation": correlation, "rcs": RCS(weight=0.3, temperature=1.7)}
    mixed = encoder(0.37, "clip", **options)
    got = mixed(pixels, coarse=mixed.coarse(pixels)).patches
    plain = encoder(None, "clip", **options)(pixels).patches
    torch.testing.assert_close(got, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("base", ("naclip", "sclip"))
def test_the_whole_equation_within_rcs(base: str, seed: int) -> None:
    torch.manual_seed(seed)
    rcs = RCS(weight=0.3, temperature=1.7)
    dense = encoder(0.37, base, rcs=rcs).double()
    pixels, whole = images(2, 64, 96).double(), images(2, 48, 32).double()
    coarse = dense.coarse(whole)
    got = dense(pixels, coarse=coarse).patches

    window, tower = dense.run_blocks(pixels), dense.tower
    rows = torch.arange(window.value.shape[2])
    options = {
        "grid": window.grid,
        "correlation": dense.correlation.scores,
        "neighbourhood_std": dense.neighbourhood_std,
        "cross_layers": window.cross_layers,
    }
    maps = attention_maps(window.query, window.key, rows, **options)
    operands = [window.key] if base == "naclip" else [window.query, window.key]
    gathered = by_hand(operands, coarse, 1.0)
    attended = (1 - 0.37) * (maps.base @ window.value) + 0.37 * gathered
    attended = 1.7 * ((1 - 0.3) * attended + 0.3 * (maps.cross_layer @ window.value))
    tokens = tower.project_out(tower.blocks[-1], attended)
    if base == "sclip":
        tokens = tower.feed_forward(tower.blocks[-1], window.tokens + tokens)
    expected = tower.head(tokens)[:, 1:].unflatten(1, (4, 6))
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("correlation", ("qq+kk", "kk,layer=2,temperature=0.5"))
def test_correlations_agree_with_the_reference(correlation: str, seed: int) -> None:
    torch.manual_seed(seed)
    pixels, whole, queries = images(2, 64, 96), images(2, 32, 48), text(QUERIES, 32)
    results = []
    for implementation in ("torch", "reference"):
        options = {"correlation": correlation, "rcs": RCS(), "sfr": SFR(refine_iterations=1)}
        dense = encoder(0.4, "naclip", implementation=implementation, **options)
        results.append(dense(pixels, queries, dense.coarse(whole)))
    first, second = results
    assert torch.equal(first.feedback_labels, second.feedback_labels)
    torch.testing.assert_close(first.patches, second.patches, rtol=1e-4, atol=1e-5)


def test_the_kernels_take_it(seed: int) -> None:
    torch.manual_seed(seed)
    device = kernel_device()
    pixels, whole = images(2, 32, 48).to(device), images(2, 32, 32).to(device)
    first, second = (
        dense(pixels, coarse=dense.coarse(whole)).patches
        for dense in (
            encoder(0.4, rcs=RCS(), implementation=name).to(device) for name in ("torch", "triton")
        )
    )
    torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-4)


def test_windows_of_several_images_in_one_batch_give_what_each_gives_alone(seed: int) -> None:
    torch.manual_seed(seed)
    dense = encoder(0.4, rcs=RCS(), sfr=SFR(refine_iterations=1))
    windows, queries = images(4, 64, 64), text(QUERIES, 32)
    # Two grids of as many patches: their coarse passes fit into one batch.
    coarse = Coarse.stack([dense.coarse(images(1, *size)) for size in ((32, 96), (48, 64))])
    owners = [0, 1, 1, 0]
    together = dense(windows, queries, coarse[owners])
    for number, owner in enumerate(owners):
        alone = dense(windows[number : number + 1], queries, coarse[owner])
        assert torch.equal(alone.feedback_labels[0], together.feedback_labels[number])
        torch.testing.assert_close(alone.patches[0], together.patches[number], rtol=1e-4, atol=1e-5)
    permuted = dense(windows.flip(0), queries, coarse[owners[::-1]])
    torch.testing.assert_close(permuted.patches.flip(0), together.patches, rtol=1e-4, atol=1e-5)


def test_the_coarse_pass_of_a_batch_is_that_of_each_image(seed: int) -> None:
    torch.manual_seed(seed)
    dense, whole = encoder(0.4, "sclip"), images(3, 48, 64)
    together = dense.coarse(whole)
    assert len(together) == 3
    for image, one in zip(whole, together, strict=True):
        alone = dense.coarse(image[None])
        assert alone.key == one.key == 1 + 3 * 4
        for got, expected in zip((*one.keys, one.value), (*alone.keys, alone.value), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_coarse_passes_are_picked_and_stacked() -> None:
    coarse = coarse_tokens(4, 5, 2, torch.float32)
    picked = coarse[[2, 0, 2]]
    assert torch.equal(picked.value, coarse.value[[2, 0, 2]])
    assert torch.equal(picked.keys[1], coarse.keys[1][[2, 0, 2]])
    assert torch.equal(coarse[1:3].value, coarse.value[1:3])
    assert torch.equal(coarse[-1].keys[0], coarse.keys[0][3:])
    stacked = Coarse.stack(list(coarse))
    assert torch.equal(stacked.value, coarse.value)
    assert all(map(torch.equal, stacked.keys, coarse.keys))
    with pytest.raises(ValueError, match=r"as many tokens.*got \[5, 6\]"):
        Coarse.stack([coarse, coarse_tokens(1, 6, 2, torch.float32)])
    with pytest.raises(ValueError, match="at least one.*got none"):
        Coarse.stack([])


@pytest.mark.slow
def test_a_compiled_encoder_is_one_graph() -> None:
    dense = encoder(0.4, rcs=RCS())
    pixels, coarse = images(1, 64, 64), dense.coarse(images(1, 48, 48))
    torch._dynamo.reset()
    compiled = torch.compile(dense, fullgraph=True, backend="aot_eager", dynamic=False)
    got = compiled(pixels, None, coarse).patches
    torch.testing.assert_close(got, dense(pixels, None, coarse).patches, rtol=1e-4, atol=1e-5)


def test_the_size_of_the_coarse_pass() -> None:
    widest = 196 * 16  # A thread takes no more patches.
    for image, side, expected in (
        ((1024, 1024), 0, (224, 224)),
        ((1024, 2048), 0, (160, 320)),
        ((1024, 1024), 448, (448, 448)),
        ((100, 60), 0, (96, 64)),  # Small images stay.
        ((5, 5), 0, (16, 16)),
        ((2, 40_000), 0, (16, widest)),
        ((40_000, 2), 0, (widest, 16)),
        ((512, 512), 7, (16, 16)),
    ):
        assert Overview(side=side).size(*image, window=224, patch_size=(16, 16)) == expected


def test_sizes_are_whole_patches_near_the_area_asked_for(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for height, width in torch.randint(300, 4000, (50, 2), generator=generator).tolist():
        rows, columns = Overview().size(height, width, 336, (14, 16))
        assert rows % 14 == columns % 16 == 0
        # Half a patch either way of at least 90 pixels.
        assert rows * columns == pytest.approx(336**2, rel=0.2)
        assert rows / columns == pytest.approx(height / width, rel=0.2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Overview(1.2), "overview weight must lie between 0 and 1; got 1.2"),
        (lambda: Overview(side=-1), "overview side must be at least 0; got -1"),
        (lambda: Overview().size(9, 9, 0, (16, 16)), "give the overview a side"),
        (lambda: encoder(0.2, "maskclip"), "'identity' of base 'maskclip' compares no"),
        (lambda: encoder(0.2, "proxyclip", proxy=colours), "attends by another model's features"),
        (lambda: encoder(None).coarse(images(1, 64, 64)), "no overview to make a"),
        (lambda: encoder(0.2).coarse(images(1, 9, 64)), "smaller than one patch"),
        (lambda: encoder(0.2)(images(1, 64, 64)), "needs the coarse pass of each"),
        (
            lambda: encoder(None)(images(1, 64, 64), None, coarse_tokens(1, 5, 1, torch.float32)),
            "has no overview, so it cannot use a coarse pass",
        ),
        (
            lambda: encoder(0.2)(images(3, 64, 64), None, coarse_tokens(2, 5, 1, torch.float32)),
            "each of 3 windows; got 2",
        ),
        (lambda: encoder(0.2).attention(images(1, 64, 64)), "overview=None"),
    ],
)
def test_what_does_not_fit_says_what_would(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()

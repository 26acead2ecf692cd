"""The encoder: against CLIP's own forward pass, compiled, at any size, in low precision, and its errors."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from golden import arrays, cases, encoder
from kernel_support import kernel_device
from method_support import colours, small_tower, text
from thread_support import with_threads
from torch.nn.functional import normalize

from resclip import RCS, SFR, DenseEncoder
from resclip.encoder.similarity import similarity
from resclip.methods.catalogue import Overview
from resclip.models.tower import constant_in_graphs


def test_what_is_constant_in_graphs_has_the_mark_that_torch_makes() -> None:
    def one() -> None: ...

    def other() -> None: ...

    assert vars(constant_in_graphs(one)) == vars(torch.compiler.assume_constant_result(other)) != {}


@pytest.mark.parametrize(
    "implementation", ("torch", pytest.param("triton", marks=pytest.mark.slow))
)
def test_a_compiled_encoder_is_one_graph(implementation: str, seed: int) -> None:
    """On another grid than the trained one, which resizes the position embedding beside all else."""
    torch.manual_seed(seed)
    pixels, queries = torch.randn(1, 3, 16, 48).to(kernel_device()), text(2, 32).to(kernel_device())
    dense = DenseEncoder(
        small_tower(layers=3),
        rcs=RCS(),
        sfr=SFR(refine_iterations=1),
        implementation=implementation,
    ).to(kernel_device())
    compiled = torch.compile(dense, fullgraph=True, backend="aot_eager", dynamic=False)
    torch._dynamo.reset()
    features, expected = compiled(pixels, queries), dense(pixels, queries)
    assert torch.equal(features.feedback_labels, expected.feedback_labels)
    torch.testing.assert_close(features.patches, expected.patches, rtol=1e-4, atol=1e-5)


def test_plain_clip_is_open_clips_own_forward(seed: int) -> None:
    """With scaled layers and another activation, in float64."""
    torch.manual_seed(seed)
    visual = small_tower(ls_init_value=0.1, act_layer=torch.nn.SiLU).double()
    pixels = torch.randn(3, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(DenseEncoder(visual, base="clip")(pixels).cls, visual(pixels))


def test_the_tower_is_left_as_it_was() -> None:
    visual = small_tower()
    before = {name: value.clone() for name, value in visual.state_dict().items()}
    pixels = torch.randn(1, 3, 64, 64)
    expected = visual(pixels)
    DenseEncoder(visual, rcs=RCS(), sfr=SFR())(pixels, text(5, 32))
    assert all(torch.equal(value, before[name]) for name, value in visual.state_dict().items())
    assert torch.equal(visual(pixels), expected)


@pytest.mark.parametrize("size", [(16, 16), (17, 100), (160, 48)])
def test_any_size_of_at_least_a_patch(size: tuple[int, int]) -> None:
    """One patch, remainders both ways, and tall."""
    dense = DenseEncoder(small_tower(), rcs=RCS(), sfr=SFR())
    features = dense(torch.randn(1, 3, *size), text(5, 32))
    assert features.patches.shape == (1, size[0] // 16, size[1] // 16, 32)
    assert torch.isfinite(features.patches).all()


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_low_precision_stays_near(dtype: torch.dtype) -> None:
    recorded = arrays("naclip_rcs")
    low = encoder(cases()["naclip_rcs"], "torch", dtype=dtype)(recorded["image"][None])
    assert low.patches.dtype is dtype
    got = low.patches[0].flatten(0, 1).float()
    error = (got - recorded["tokens"][1:]).norm() / recorded["tokens"][1:].norm()
    assert error < 30 * torch.finfo(dtype).eps


PROXY = {"base": "proxyclip", "proxy": colours}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"base": "deeplab"}, "unknown base 'deeplab'; use one of: clip, maskclip"),
        ({"base": "maskclip", "sfr": SFR()}, "'maskclip' has none"),
        ({"final_block": "half"}, "'attention_only', 'full_residual'.*got 'half'"),
        ({"implementation": "cuda"}, "got 'cuda'"),
        ({"base": "proxyclip"}, "pass proxy=, such as"),
        ({"base": "naclip", "proxy": colours}, "'naclip' has no use for a proxy"),
        ({**PROXY, "correlation": "qq"}, "correlation must be None; got 'qq'"),
        ({**PROXY, "final_block": "full_residual"}, "'attention_only'; got 'full_residual'"),
        ({"correlation": "qk,layer=7"}, "between 1 and 6.*got 7"),
        ({"correlation": "identity", "sfr": SFR()}, "SFR changes the score"),
        ({"rcs": RCS(layers="0,5-7")}, "between 1 and 5 .block 6 is the final one.*got 0, 6, 7"),
        ({"base": ["naclip"]}, r"unknown base \['naclip'\]"),
        ({"correlation": 5}, "correlation must be a Correlation, its text, or None; got 5"),
        ({"neighbourhood_std": "5"}, "neighbourhood_std must be a number; got '5'"),
        ({"neighbourhood_std": float("nan")}, "neighbourhood_std must be .* above 0; got nan"),
        ({"neighbourhood_std": -1.0}, "neighbourhood_std must be .* above 0; got -1.0"),
        ({**PROXY, "proxy": "colour"}, "proxy must be a function of .*; got 'colour'"),
        ({**PROXY, "proxy_attention": 5}, "proxy_attention must be a ProxyAttention .*got 5"),
        ({"overview": 5}, "overview must be an Overview or None; got 5"),
    ],
)
def test_settings_that_do_not_fit_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        DenseEncoder(small_tower(), **arguments)


@pytest.mark.parametrize(
    ("pixels", "words", "error", "message"),
    [
        (torch.zeros(3, 64, 64), None, ValueError, r"\(B, 3, H, W\) tensor; got \(3, 64, 64\)"),
        (torch.zeros(1, 3, 64, 64).byte(), None, TypeError, "normalised floats; got torch.uint8"),
        (torch.zeros(1, 3, 15, 64), None, ValueError, "smaller than one patch of 16 × 16"),
        (torch.zeros(1, 3, 64, 64), None, ValueError, "needs text"),
        (torch.zeros(1, 3, 64, 64), text(3, 40), ValueError, r"\(Q, 32\).*got \(3, 40\)"),
    ],
)
def test_wrong_inputs_say_what_was_expected(pixels, words, error, message: str) -> None:
    with pytest.raises(error, match=message):
        DenseEncoder(small_tower(), sfr=SFR())(pixels, words)


def test_a_patch_and_coarse_passes_have_their_types() -> None:
    pixels = torch.zeros(1, 3, 64, 64)
    with pytest.raises(TypeError, match=r"query must be \(row, column\) of a patch.*; got 5"):
        DenseEncoder(small_tower()).attention(pixels, query=5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="coarse must be a Coarse, .*; got 5"):
        DenseEncoder(small_tower(), overview=Overview())(pixels, coarse=5)  # type: ignore[arg-type]


def test_similarity_does_not_depend_on_the_number_of_threads(seed: int) -> None:
    """Of one window: products of few rows take other code with one thread."""
    torch.manual_seed(seed)
    patches = torch.randn(1, 14, 14, 512)
    for queries in (1, 5, 6, 7, 9, 10, 11, 17):
        words = normalize(torch.randn(queries, 512), dim=1)
        one, *others = with_threads((1, 2, 3), partial(similarity, patches, words))
        assert one.shape == (1, queries, 14, 14)
        assert all(torch.equal(one, other) for other in others), queries

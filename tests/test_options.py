"""The ops' options objects: one place for defaults, and the same call by keyword."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from kernel_support import attention_inputs, label_map
from torch import nn

from resclip import RCS, SFR
from resclip.methods.presets import find_preset
from resclip_kernels import (
    AttentionOptions,
    FeedbackOptions,
    PamrOptions,
    PatchLabelsOptions,
    ProxyAttentionOptions,
    ResidualAttention,
    UpsampleOptions,
    attention_maps,
    feedback_matrix,
    feedback_rows,
    pamr,
    patch_labels,
    proxy_attention,
    proxy_rows,
    residual_attention,
    semantic_feedback,
    upsample_argmax,
)

GRID = (3, 4)


def test_the_methods_defaults_are_the_ops_and_those_of_the_released_program() -> None:
    options = AttentionOptions(grid=GRID)
    assert (options.feedback_weight, options.feedback_temperature) == (0.6, 2.1)
    assert (options.cross_weight, options.cross_temperature) == (0.4, 2.0)
    assert replace(options, **RCS().attention_options(), **SFR().attention_options()) == options
    assert replace(ProxyAttentionOptions(), **SFR().attention_options()) == ProxyAttentionOptions()
    assert SFR().feedback_options() == FeedbackOptions()


def test_the_papers_values_are_a_preset() -> None:
    paper = find_preset("paper")
    assert (paper.sfr["weight"], paper.sfr["temperature"]) == (0.7, 1.0)
    assert (paper.rcs["weight"], paper.rcs["temperature"]) == (0.5, 1.0)


def test_residual_attention_takes_an_object_or_keywords() -> None:
    inputs = attention_inputs(0, grid=GRID, width=16)
    rest: dict[str, Any] = {
        "feedback": semantic_feedback(inputs.labels),
        "cross_layers": inputs.cross_layers,
    }
    options = AttentionOptions(grid=GRID, correlation="qq+kk", neighbourhood_std=3.0)
    by_object = residual_attention(*inputs[:3], options, **rest).output
    keywords: dict[str, Any] = {"grid": GRID, "correlation": "qq+kk", "neighbourhood_std": 3.0}
    assert torch.equal(residual_attention(*inputs[:3], **keywords, **rest).output, by_object)
    released = {"feedback_weight": 0.6, "feedback_temperature": 2.1}
    released |= {"cross_weight": 0.4, "cross_temperature": 2.0}
    spelled = residual_attention(*inputs[:3], **keywords, **released, **rest).output
    assert torch.equal(spelled, by_object)
    # A keyword stands in place of the object's field.
    changed = residual_attention(*inputs[:3], options, correlation="qk", **rest).output
    assert torch.equal(
        changed, residual_attention(*inputs[:3], **{**keywords, "correlation": "qk"}, **rest).output
    )
    rows = torch.tensor([0, 5])
    maps = attention_maps(inputs.query, inputs.key, rows, options, **rest)
    same = attention_maps(inputs.query, inputs.key, rows, **keywords, **rest)
    assert torch.equal(maps.final, same.final)


def test_the_other_ops_take_an_object_or_keywords() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 12, 16, generator=generator)
    planes = torch.rand(1, 4, 12, 16, generator=generator)
    logits = torch.rand(1, 4, *GRID, generator=generator)
    features = torch.rand(1, 8, *GRID, generator=generator)
    value = torch.rand(1, 2, 12, 5, generator=generator)
    labels = label_map(0, grid=GRID)
    assert torch.equal(
        pamr(image, planes, PamrOptions(iterations=2, dilations=(1,))),
        pamr(image, planes, iterations=2, dilations=[1]),
    )
    small: dict[str, Any] = {"patch_size": (4, 4), "threshold": 0.3, "refine_iterations": 0}
    assert torch.equal(
        patch_labels(logits, image, PatchLabelsOptions(**small)),
        patch_labels(logits, image, **small),
    )
    for by_object, by_keyword in zip(
        upsample_argmax(logits, (9, 10), UpsampleOptions(through=(6, 8))),
        upsample_argmax(logits, (9, 10), through=(6, 8)),
        strict=True,
    ):
        assert torch.equal(by_object, by_keyword)
    assert torch.equal(
        semantic_feedback(labels, FeedbackOptions("line", normalise=False)).row_sums,
        semantic_feedback(labels, connectivity="line", normalise=False).row_sums,
    )
    assert torch.equal(
        proxy_attention(features, value, ProxyAttentionOptions(beta=0.9, cut=0.1), grid=GRID),
        proxy_attention(features, value, grid=GRID, beta=0.9, cut=0.1),
    )


def test_a_module_holds_its_options_and_each_of_their_fields() -> None:
    source = nn.MultiheadAttention(16, 2, batch_first=True)
    module = ResidualAttention.from_attention(source, window=3, score_temperature=0.5)
    assert module.options.window == module.window == 3
    module.window = None
    assert module.options == replace(AttentionOptions(grid=(1, 1)), score_temperature=0.5)
    options = AttentionOptions(grid=GRID, correlation="qk")
    other = ResidualAttention.from_attention(source, options=options, cross_weight=0.2)
    assert other.grid == GRID
    assert other.options == replace(options, cross_weight=0.2)
    assert "correlation='qk', grid=(3, 4)" in repr(other)
    with pytest.raises(ValueError, match="cross_weight must lie between 0 and 1"):
        other.cross_weight = 1.2


def test_numbers_of_numpy_do() -> None:
    import numpy as np

    options = AttentionOptions(grid=GRID, cross_weight=np.float32(0.5), score_temperature=2)
    assert type(options.cross_weight) is type(options.score_temperature) is float


@pytest.mark.parametrize("grid", [(3,), 3, (3.0, 3.0), (-3, -3)])
def test_a_grid_is_two_integers(grid: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"grid must be \(h, w\)"):
        AttentionOptions(grid=grid)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (FeedbackOptions, {"connectivity": torch.zeros(2)}, "connectivity must be one of 'prefix'"),
        (FeedbackOptions, {"smoothing_std": None}, "smoothing_std must be a number; got None"),
        (FeedbackOptions, {"normalise": 1}, "normalise must be True or False; got 1"),
        (PamrOptions, {"dilations": 8}, "dilations must be a tuple of distances.*; got 8"),
        (PatchLabelsOptions, {"patch_size": 16}, r"patch_size must be \(height, width\).*; got 16"),
        (PatchLabelsOptions, {"patch_size": (16, 0)}, r"at least 1 each; got \(16, 0\)"),
        (UpsampleOptions, {"through": (True, 8)}, "through must be .* two integers; got .True"),
        (
            UpsampleOptions,
            {"dilations": "88"},
            "dilations must be a tuple of distances.*; got '88'",
        ),
        (ProxyAttentionOptions, {"beta": "1"}, "beta must be a number; got '1'"),
    ],
)
def test_options_of_another_type(kind: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        kind(**options)


@pytest.mark.parametrize(
    ("options", "keywords", "message"),
    [
        (FeedbackOptions(), {}, "options must be AttentionOptions; got FeedbackOptions"),
        (None, {"grid": (3, 3), "cross_wieght": 0.5}, "'cross_wieght'.*cross_weight"),
        (None, {}, "expected grid="),
        (AttentionOptions(grid=(3, 3)), {"window": "x"}, "window must be an integer"),
    ],
)
def test_options_that_no_op_takes(options: Any, keywords: dict[str, Any], message: str) -> None:
    tensors = [torch.zeros(1, 1, 10, 4)] * 3
    with pytest.raises(TypeError, match=message):
        residual_attention(*tensors, options, **keywords)


def test_tensors_and_sizes_of_another_type() -> None:
    query, labels = torch.zeros(1, 1, 12, 4), label_map(0, grid=GRID)
    logits, features = torch.zeros(1, 4, *GRID), torch.ones(1, 8, *GRID)
    state: Any = "a state"
    calls: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], str]] = [
        (residual_attention, (query,) * 3, {"grid": GRID, "feedback": state}, "feedback must be"),
        (
            residual_attention,
            (query,) * 3,
            {"grid": GRID, "cross_layers": [1]},
            "cross_layers must",
        ),
        (residual_attention, (query,) * 3, {"grid": GRID, "projections": 5}, "projections must be"),
        (proxy_attention, (features, query), {"grid": 12}, r"grid must be \(h, w\).*got 12"),
        (proxy_rows, (features, torch.tensor([0])), {"feedback": state}, "feedback must be"),
        (
            feedback_matrix,
            (labels,),
            {},
            "feedback must be a state of semantic_feedback; got Tensor",
        ),
        (feedback_rows, (labels, torch.tensor([0])), {}, "feedback must be a state of"),
        (upsample_argmax, (logits, 9), {}, r"size must be \(height, width\).*got 9"),
        (upsample_argmax, (logits, (9, 9)), {"query_to_class": [0]}, "query_to_class must be"),
        (
            ResidualAttention,
            (16, 2),
            {"options": "kk"},
            "options must be AttentionOptions; got str",
        ),
        (ResidualAttention, (16, 2), {"grid": 5}, r"grid must be \(h, w\).*; got 5"),
        (ResidualAttention, (16, 2), {"recorders": 5}, "recorders must be .* modules; got 5"),
    ]
    for function, tensors, keywords, message in calls:
        with pytest.raises(TypeError, match=message):
            function(*tensors, **keywords)

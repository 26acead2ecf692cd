"""Numerical ops of training-free dense CLIP, on tensors: no model, no image file and no class name.

Every op is a function with these implementations: `reference` (the plain formula), `torch` (lean, any device),
`library` (PyTorch's fused kernels; for most ops the same as `torch`) and `triton` (fused GPU kernels, inference only).
It takes one options object, or the object's fields as keyword arguments.
`ResidualAttention` is the op as a drop-in module; `attention_maps`, `cross_layer_rows`, `feedback_matrix`,
`feedback_rows` and `proxy_rows` give the maps that the ops never hold, for looking at them. What is left serves code
around the ops: argument checks, `check_labels` for labels that come from a GPU, steps whose results do not depend on
the number of threads, `fast_linear`, `FORKS` for forked processes, and `score_operands`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resclip_kernels.all_ops import TRIALS
    from resclip_kernels.checks import (
        check_callable,
        check_choice,
        check_count,
        check_finite,
        check_flag,
        check_float,
        check_fraction,
        check_not_negative,
        check_pair,
        check_positive,
        check_range,
        check_type,
        quoted,
    )
    from resclip_kernels.cpu import cpu_kind, multiplies_bfloat16
    from resclip_kernels.deterministic import deterministic_attention, resize_planes
    from resclip_kernels.dispatch import Implementation, check_implementation, explain
    from resclip_kernels.first_use import (
        JUDGE,
        KernelWarning,
        Verdict,
        check_kernels_at_first_use,
    )
    from resclip_kernels.forks import FORKS
    from resclip_kernels.linear import fast_linear, linear_obstacle
    from resclip_kernels.modules import QueryKeyRecorder, ResidualAttention
    from resclip_kernels.nan_check import check_labels
    from resclip_kernels.ops.laplacian_propagation import laplacian_propagation
    from resclip_kernels.ops.pamr import pamr
    from resclip_kernels.ops.patch_labels import patch_labels
    from resclip_kernels.ops.proxy_attention import proxy_attention, proxy_rows
    from resclip_kernels.ops.residual_attention import ResidualAttentionOutput, residual_attention
    from resclip_kernels.ops.residual_attention.attention_maps import (
        AttentionMaps,
        attention_maps,
        cross_layer_rows,
    )
    from resclip_kernels.ops.semantic_feedback import (
        SemanticFeedback,
        feedback_matrix,
        feedback_rows,
        semantic_feedback,
    )
    from resclip_kernels.ops.similarity_aggregation import similarity_aggregation
    from resclip_kernels.ops.upsample_argmax import upsample_argmax
    from resclip_kernels.options.laplacian_propagation import LaplacianPropagationOptions
    from resclip_kernels.options.pamr import PamrOptions
    from resclip_kernels.options.patch_labels import PatchLabelsOptions
    from resclip_kernels.options.proxy_attention import ProxyAttentionOptions
    from resclip_kernels.options.residual_attention import (
        CORRELATIONS,
        AttentionOptions,
        Correlation,
        score_operands,
    )
    from resclip_kernels.options.semantic_feedback import (
        CONNECTIVITIES,
        Connectivity,
        FeedbackOptions,
    )
    from resclip_kernels.options.similarity_aggregation import SimilarityAggregationOptions
    from resclip_kernels.options.upsample_argmax import UpsampleOptions

# The names that each module defines. They load on first use: options and checks need no torch.
HOMES = {
    "all_ops": ("TRIALS",),
    "checks": (
        "check_callable",
        "check_choice",
        "check_count",
        "check_finite",
        "check_flag",
        "check_float",
        "check_fraction",
        "check_not_negative",
        "check_pair",
        "check_positive",
        "check_range",
        "check_type",
        "quoted",
    ),
    "cpu": ("cpu_kind", "multiplies_bfloat16"),
    "deterministic": ("deterministic_attention", "resize_planes"),
    "dispatch": ("Implementation", "check_implementation", "explain"),
    "first_use": ("JUDGE", "KernelWarning", "Verdict", "check_kernels_at_first_use"),
    "forks": ("FORKS",),
    "linear": ("fast_linear", "linear_obstacle"),
    "modules": ("QueryKeyRecorder", "ResidualAttention"),
    "nan_check": ("check_labels",),
    "ops.laplacian_propagation": ("laplacian_propagation",),
    "ops.pamr": ("pamr",),
    "ops.patch_labels": ("patch_labels",),
    "ops.proxy_attention": ("proxy_attention", "proxy_rows"),
    "ops.residual_attention": ("ResidualAttentionOutput", "residual_attention"),
    "ops.residual_attention.attention_maps": (
        "AttentionMaps",
        "attention_maps",
        "cross_layer_rows",
    ),
    "ops.semantic_feedback": (
        "SemanticFeedback",
        "feedback_matrix",
        "feedback_rows",
        "semantic_feedback",
    ),
    "ops.similarity_aggregation": ("similarity_aggregation",),
    "ops.upsample_argmax": ("upsample_argmax",),
    "options.laplacian_propagation": ("LaplacianPropagationOptions",),
    "options.pamr": ("PamrOptions",),
    "options.patch_labels": ("PatchLabelsOptions",),
    "options.proxy_attention": ("ProxyAttentionOptions",),
    "options.residual_attention": (
        "CORRELATIONS",
        "AttentionOptions",
        "Correlation",
        "score_operands",
    ),
    "options.semantic_feedback": ("CONNECTIVITIES", "Connectivity", "FeedbackOptions"),
    "options.similarity_aggregation": ("SimilarityAggregationOptions",),
    "options.upsample_argmax": ("UpsampleOptions",),
}
HOME_OF = {name: home for home, names in HOMES.items() for name in names}
__all__ = [
    "CONNECTIVITIES",
    "CORRELATIONS",
    "FORKS",
    "JUDGE",
    "TRIALS",
    "AttentionMaps",
    "AttentionOptions",
    "Connectivity",
    "Correlation",
    "FeedbackOptions",
    "Implementation",
    "KernelWarning",
    "LaplacianPropagationOptions",
    "PamrOptions",
    "PatchLabelsOptions",
    "ProxyAttentionOptions",
    "QueryKeyRecorder",
    "ResidualAttention",
    "ResidualAttentionOutput",
    "SemanticFeedback",
    "SimilarityAggregationOptions",
    "UpsampleOptions",
    "Verdict",
    "attention_maps",
    "check_callable",
    "check_choice",
    "check_count",
    "check_finite",
    "check_flag",
    "check_float",
    "check_fraction",
    "check_implementation",
    "check_kernels_at_first_use",
    "check_labels",
    "check_not_negative",
    "check_pair",
    "check_positive",
    "check_range",
    "check_type",
    "cpu_kind",
    "cross_layer_rows",
    "deterministic_attention",
    "explain",
    "fast_linear",
    "feedback_matrix",
    "feedback_rows",
    "laplacian_propagation",
    "linear_obstacle",
    "multiplies_bfloat16",
    "pamr",
    "patch_labels",
    "proxy_attention",
    "proxy_rows",
    "quoted",
    "residual_attention",
    "resize_planes",
    "score_operands",
    "semantic_feedback",
    "similarity_aggregation",
    "upsample_argmax",
]


def __getattr__(name: str) -> Any:
    if name not in HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(HOME_OF))

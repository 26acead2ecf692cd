"""Numerical ops of training-free dense CLIP, on tensors: no model, no image file and no class name.

Every op is a function with these implementations: `reference` (the plain formula), `torch` (lean, any device),
`library` (PyTorch's fused kernels; for most ops the same as `torch`) and `triton` (fused GPU kernels, inference only).
It takes one options object, or the object's fields as keyword arguments.
`ResidualAttention` is the op as a drop-in module; `attention_maps`, `cross_layer_rows`, `feedback_matrix`,
`feedback_rows` and `proxy_rows` give the maps that the ops never hold, for looking at them. What is left serves code
around the ops: argument checks, `check_labels` for labels that come from a GPU, steps whose results do not depend on
the number of threads, `fast_linear`, `FORKS` for forked processes, and `score_operands`.
"""

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
from resclip_kernels.fast_linear import fast_linear, linear_obstacle
from resclip_kernels.first_use import (
    JUDGE,
    TRIALS,
    KernelWarning,
    Verdict,
    check_kernels_at_first_use,
)
from resclip_kernels.forks import FORKS
from resclip_kernels.modules import QueryKeyRecorder, ResidualAttention
from resclip_kernels.nan_check import check_labels
from resclip_kernels.ops.laplacian_propagation import (
    LaplacianPropagationOptions,
    laplacian_propagation,
)
from resclip_kernels.ops.pamr import PamrOptions, pamr
from resclip_kernels.ops.patch_labels import PatchLabelsOptions, patch_labels
from resclip_kernels.ops.proxy_attention import ProxyAttentionOptions, proxy_attention, proxy_rows
from resclip_kernels.ops.residual_attention import (
    CORRELATIONS,
    AttentionOptions,
    Correlation,
    ResidualAttentionOutput,
    residual_attention,
    score_operands,
)
from resclip_kernels.ops.residual_attention.attention_maps import (
    AttentionMaps,
    attention_maps,
    cross_layer_rows,
)
from resclip_kernels.ops.semantic_feedback import (
    CONNECTIVITIES,
    Connectivity,
    FeedbackOptions,
    SemanticFeedback,
    feedback_matrix,
    feedback_rows,
    semantic_feedback,
)
from resclip_kernels.ops.similarity_aggregation import (
    SimilarityAggregationOptions,
    similarity_aggregation,
)
from resclip_kernels.ops.upsample_argmax import UpsampleOptions, upsample_argmax

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

"""Numerical ops of training-free dense CLIP, on tensors: no model, no image file, no class name in here.

Every op is a function with three implementations: `reference` (the plain formula), `torch` (lean, any device) and
`triton` (fused GPU kernels, inference only). `ResidualAttention` is the op as a drop-in module.
"""

from resclip_kernels.attention_maps import AttentionMaps, attention_maps
from resclip_kernels.dispatch import Implementation
from resclip_kernels.modules import QueryKeyRecorder, ResidualAttention
from resclip_kernels.ops.pamr import pamr
from resclip_kernels.ops.patch_labels import patch_labels
from resclip_kernels.ops.proxy_attention import proxy_attention
from resclip_kernels.ops.residual_attention import (
    CORRELATIONS,
    ResidualAttentionOutput,
    residual_attention,
)
from resclip_kernels.ops.semantic_feedback import (
    CONNECTIVITIES,
    SemanticFeedback,
    feedback_matrix,
    semantic_feedback,
)
from resclip_kernels.ops.upsample_argmax import upsample_argmax

__all__ = [
    "CONNECTIVITIES",
    "CORRELATIONS",
    "AttentionMaps",
    "Implementation",
    "QueryKeyRecorder",
    "ResidualAttention",
    "ResidualAttentionOutput",
    "SemanticFeedback",
    "attention_maps",
    "feedback_matrix",
    "pamr",
    "patch_labels",
    "proxy_attention",
    "residual_attention",
    "semantic_feedback",
    "upsample_argmax",
]

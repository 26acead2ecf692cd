"""CLIP Surgery's logits: similarities without what all texts share."""

from __future__ import annotations

import torch
from torch import Tensor

from resclip.encoder.similarity import similarity
from resclip_kernels import check_float, check_range


def feature_surgery(patches: Tensor, cls: Tensor, text: Tensor, sharpness: float = 2.0) -> Tensor:
    """Similarities from which each patch's mean over all texts is taken, texts weighted by what [CLS] finds likely.

    With s the cosines, p = softmax(sharpness · s[CLS]) over the Q texts of an image, and w = Q · p:

        sim[t, i] = w_t s[t, i] − mean over t' of w_t' s[t', i]

    which is the released program's sum over products of features (Li et al., CLIP Surgery, arXiv 2304.05653) without
    its (Q + 1) · n · E numbers. Each image has its own weights. The mean is one number a patch and
    never changes which text is the likeliest; the weights do. A single text gives 0 everywhere: it shares all with
    itself; see `redundant_similarity`.

    Args:
        patches: (B, h, w, E), not unit-normed.
        cls: (B, E) of [CLS], not unit-normed.
        text: (Q, E) unit rows.
        sharpness: the factor of [CLS]'s cosines.

    Returns:
        (B, Q, h, w), float32 or wider.

    Raises:
        TypeError, ValueError: shapes that do not fit.
    """
    check_tokens(patches, text)
    check_float("cls", cls, 2, "(B, E)")
    check_range("sharpness", sharpness, 0, 1e6)
    if cls.shape != (patches.shape[0], patches.shape[3]):
        raise ValueError(
            f"cls must be (B, E) = {(patches.shape[0], patches.shape[3])}, one [CLS] for each image of patches; "
            f"got {tuple(cls.shape)}"
        )
    of_image = similarity(cls[:, None, None], text)  # [B, Q, 1, 1]
    weights = text.shape[0] * (sharpness * of_image).softmax(dim=1)
    weighted = weights * similarity(patches, text)
    return weighted.sub_(weighted.mean(dim=1, keepdim=True))


def redundant_similarity(patches: Tensor, text: Tensor, redundant: Tensor) -> Tensor:
    """Similarities from which those to a text that says nothing are taken: f̂ · (t − t₀).

    For one text, or texts that each stand alone (CLIP Surgery's way for a single text).

    Args:
        patches: (B, h, w, E), not unit-normed.
        text: (Q, E) unit rows t.
        redundant: (E,), t₀: the embedding of the empty text "" by the same templates.

    Returns:
        (B, Q, h, w), float32 or wider; t − t₀ is not of unit length.

    Raises:
        TypeError, ValueError: shapes that do not fit.
    """
    check_tokens(patches, text)
    check_float("redundant", redundant, 1, "(E,)")
    if len(redundant) != text.shape[1]:
        raise ValueError(
            f"redundant must be the embedding of one text, ({text.shape[1]},) like the rows of text; "
            f"got {tuple(redundant.shape)}"
        )
    dtype = torch.promote_types(patches.dtype, torch.float32)
    return similarity(patches, text.to(dtype) - redundant.to(dtype))


def check_tokens(patches: Tensor, text: Tensor) -> None:
    """TypeError or ValueError unless these are (B, h, w, E) and (Q, E) with at least one query."""
    check_float("patches", patches, 4, "(B, h, w, E)")
    check_float("text", text, 2, "(Q, E)")
    if text.shape[1] != patches.shape[3] or text.shape[0] == 0:
        raise ValueError(
            f"text must be (Q, {patches.shape[3]}), as wide as the patches, with at least one query; "
            f"got {tuple(text.shape)}"
        )

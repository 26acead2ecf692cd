"""The losses of training, from captions and the layout of mosaics alone.

There are three questions. Which caption is this image's, and which image is this caption's (CLIP's own)? The same for
the mean of the patches that show an image. And for phrases ("a red car") cut from the captions: is every patch about
something that its image's caption names, and is everything that a caption names found in some patch?

The last two never say which patch shows what. A patch of an image captioned "a tree and grass" may be about either;
that a patch of leaves is about the tree follows only from all the other images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from resclip.builtin.training.captions import Phrase, describes

MIN_SHARE = 0.08
"""Share of an image's patches that a thing named in its caption has at least."""


def phrase_list(images: Sequence[Sequence[Phrase]]) -> list[Phrase]:
    """Every phrase in the batch once, and each named class once without a colour; sorted."""
    said = {phrase for phrases in images for phrase in phrases}
    return sorted(said | {(name, "") for name, _ in said})


def truth_table(said: Sequence[Sequence[Phrase]], images: Sequence[Sequence[Phrase]]) -> Tensor:
    """(len(images), len(said)) bool: whether every phrase of a text is true by the image's own caption."""
    texts = list(dict.fromkeys(tuple(text) for text in said))
    rows = list(dict.fromkeys(tuple(image) for image in images))
    unique = torch.tensor(
        [[all(describes(phrase, row) for phrase in text) for text in texts] for row in rows]
    )
    row_of = torch.tensor([rows.index(tuple(image)) for image in images])
    text_of = torch.tensor([texts.index(tuple(text)) for text in said])
    return unique[row_of][:, text_of]


def any_true(logits: Tensor, true: Tensor) -> Tensor:
    """Mean over rows of -log of the softmax mass on the true columns; rows with none are left out."""
    logits, true = logits[true.any(1)], true[true.any(1)]
    if len(logits) == 0:
        return logits.sum()
    return (logits.logsumexp(1) - logits.masked_fill(~true, -torch.inf).logsumexp(1)).mean()


def each_true(logits: Tensor, true: Tensor) -> Tensor:
    """Mean over true (row, column) of -log of its softmax share against the *false* columns of its row."""
    against = logits.masked_fill(true, -torch.inf).logsumexp(1, keepdim=True)
    return F.softplus(against - logits)[true].mean() if bool(true.any()) else logits.sum() * 0


def caption_loss(images: Tensor, texts: Tensor, true: Tensor, scale: Tensor) -> Tensor:
    """CLIP's loss both ways; a caption that also holds for another image counts as right there."""
    logits = scale * images @ texts.T
    return (any_true(logits, true) + any_true(logits.T, true.T)) / 2


def mean_of_cells(patches: Tensor, cell_of_patch: Tensor, count: int) -> Tensor:
    """(B, n, E) unit rows -> (count, E) unit rows: the mean patch of each image."""
    inside = cell_of_patch >= 0
    total = patches.new_zeros(count, patches.shape[-1])
    return F.normalize(total.index_add(0, cell_of_patch[inside], patches[inside]), dim=-1)


def phrase_loss(
    patches: Tensor, cell_of_patch: Tensor, phrases: Tensor, true: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Patches (B, n, E) and phrases (P, E), unit rows; true (images, P).

    Returns (every patch is about something its image's caption names, everything named is found in a patch). For
    the second, an image's score for a phrase is the mean of its patches' scores, each weighted by its exponential.
    """
    inside = cell_of_patch >= 0
    cells = cell_of_patch[inside]
    logits = scale * patches[inside] @ phrases.T  # (patches inside an image, P)
    about = any_true(logits, true[cells])
    weights = (logits - logits.detach().amax(0)).exp()
    empty = logits.new_zeros(true.shape)
    found = empty.index_add(0, cells, weights * logits) / empty.index_add(
        0, cells, weights
    ).clamp_min(1e-20)
    present = torch.zeros(len(true), dtype=torch.bool, device=cells.device).index_fill(
        0, cells, True
    )
    return about, each_true(found[present].T, true[present].T)


def share_loss(
    patches: Tensor,
    cell_of_patch: Tensor,
    phrases: Tensor,
    true: Tensor,
    group: Tensor,
    scale: Tensor,
) -> Tensor:
    """Everything that a caption names has MIN_SHARE of its image's patches.

    group (P,) numbers the noun of each phrase: "a car" and "a red car" share one. Without this, a patch of a tree
    may as well be called grass, since nearly every caption with a tree names grass too.
    """
    inside = cell_of_patch >= 0
    cells = cell_of_patch[inside]
    nouns = F.one_hot(group).to(phrases.dtype)  # (P, nouns)
    belief = (scale * patches[inside] @ phrases.T).softmax(1) * true[cells]
    area = cells.bincount(minlength=len(true)).unsqueeze(1)
    held = belief.new_zeros(len(true), nouns.shape[1]).index_add(0, cells, belief @ nouns)
    named = (true.to(nouns.dtype) @ nouns > 0) & (area > 0)
    share = (held / area.clamp_min(1)).clamp(1e-6, MIN_SHARE)
    return (
        (math.log(MIN_SHARE) - share.log())[named].mean() if bool(named.any()) else held.sum() * 0
    )

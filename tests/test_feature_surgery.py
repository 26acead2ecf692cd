"""CLIP Surgery's logits: by its definition over products of features, image by image, and where methods use them."""

from __future__ import annotations

import pytest
import torch
from method_support import make, small_tower, text
from torch import Tensor
from torch.nn.functional import normalize

from resclip import SFR, DenseEncoder, Segmenter, Vocabulary
from resclip.encoder.feature_surgery import feature_surgery, redundant_similarity
from resclip.encoder.similarity import similarity
from resclip.methods.catalogue import METHODS
from resclip.methods.pieces import Pieces
from resclip_kernels import patch_labels


def tokens(images: int = 3, grid: tuple[int, int] = (3, 5), width: int = 32) -> tuple[Tensor, ...]:
    return torch.randn(images, *grid, width), torch.randn(images, width)


def by_products_of_features(patches: Tensor, cls: Tensor, rows: Tensor, sharpness: float) -> Tensor:
    """As the paper has it: products of features and texts, without what all texts have in common."""
    weights = (sharpness * normalize(cls, dim=-1) @ rows.T).softmax(dim=-1)
    weights = weights / weights.mean()
    products = normalize(patches, dim=-1)[..., None, :] * rows * weights[:, None]
    own = products - products.mean(dim=-2, keepdim=True)
    return own.sum(dim=-1).movedim(-1, 0)


@pytest.mark.parametrize("sharpness", (0.0, 2.0, 30.0))
def test_is_the_sum_over_products_of_features(seed: int, sharpness: float) -> None:
    torch.manual_seed(seed)
    (patches, cls), rows = tokens(), text(7, 32)
    got = feature_surgery(patches, cls, rows, sharpness)
    assert got.shape == (3, 7, 3, 5)
    for image in range(3):
        expected = by_products_of_features(patches[image], cls[image], rows, sharpness)
        torch.testing.assert_close(got[image], expected, rtol=1e-5, atol=1e-6)


def test_images_of_a_batch_have_their_own_weights(seed: int) -> None:
    torch.manual_seed(seed)
    (patches, cls), rows = tokens(), text(7, 32)
    together = feature_surgery(patches, cls, rows)
    for image in range(3):
        alone = feature_surgery(patches[image, None], cls[image, None], rows)
        torch.testing.assert_close(together[image, None], alone, rtol=1e-5, atol=1e-6)


def test_a_single_text_has_nothing_of_its_own() -> None:
    patches, cls = tokens()
    assert not feature_surgery(patches, cls, text(1, 32)).any()


def test_redundant_text_is_taken_from_every_text(seed: int) -> None:
    torch.manual_seed(seed)
    (patches, _), rows, redundant = tokens(), text(4, 32), text(1, 32)[0]
    expected = similarity(patches, rows) - similarity(patches, redundant[None])
    torch.testing.assert_close(
        redundant_similarity(patches, rows, redundant), expected, rtol=1e-5, atol=1e-6
    )
    assert not redundant_similarity(patches, redundant[None], redundant).any()


@pytest.mark.parametrize(
    ("changes", "words"),
    (
        ({"cls": torch.ones(2, 8)}, r"cls must be \(B, E\) = \(1, 8\).*got \(2, 8\)"),
        ({"cls": torch.ones(8)}, r"cls must have 2 dimensions"),
        ({"text": torch.ones(3, 9)}, r"text must be \(Q, 8\).*got \(3, 9\)"),
        ({"text": torch.ones(0, 8)}, r"at least one query"),
        ({"patches": torch.ones(1, 4, 8)}, r"patches must have 4 dimensions"),
        ({"sharpness": float("nan")}, r"sharpness must be a finite number"),
    ),
)
def test_what_does_not_fit_is_refused(changes: dict[str, object], words: str) -> None:
    fitting = {
        "patches": torch.ones(1, 2, 2, 8),
        "cls": torch.ones(1, 8),
        "text": torch.ones(3, 8),
    }
    with pytest.raises(ValueError, match=words):
        feature_surgery(**{**fitting, **changes})


def test_a_redundant_text_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match=r"redundant must be the embedding of one text, \(8,\)"):
        redundant_similarity(torch.ones(1, 2, 2, 8), torch.ones(3, 8), torch.ones(9))


def test_methods_segment_by_their_own_logits(seed: int) -> None:
    """The pipeline's logits are the final block's, on a grid that is not square."""
    torch.manual_seed(seed)
    pixels, rows = torch.randn(1, 3, 64, 112), text(5, 32)
    vocabulary = Vocabulary(rows, torch.arange(5), list("abcde"))
    for name, logits_of in (
        ("clipsurgery", feature_surgery),
        ("clearclip", lambda patches, _, rows: similarity(patches, rows)),
    ):
        dense = make(small_tower(), METHODS[name])
        features = dense(pixels)
        expected = logits_of(features.patches, features.cls, rows)
        torch.testing.assert_close(Segmenter(dense, vocabulary, window=0).logits(pixels), expected)


def test_what_is_fed_back_is_segmented_by_feature_surgery(seed: int) -> None:
    """Weights change labels: [CLS] here is one text's, whose weight is then far above the others'."""
    torch.manual_seed(seed)
    dense = make(small_tower(), METHODS["clipsurgery+sfr"])
    patches, rows = torch.randn(1, 4, 7, 32), text(12, 32)
    pixels = torch.randn(1, 3, 64, 112)
    sfr = SFR(refine_iterations=0, label_threshold=0.0)
    labels = dense.final.segment_patches(sfr, patches, pixels, rows, rows[3, None])
    wanted = dense.final.logits(patches, rows[3, None], rows)
    plain = DenseEncoder(small_tower(), sfr=sfr).final
    assert torch.equal(labels, plain_labels(wanted, pixels))
    assert not torch.equal(labels, plain.segment_patches(sfr, patches, pixels, rows))


def plain_labels(logits: Tensor, pixels: Tensor) -> Tensor:
    return patch_labels(
        logits, pixels, patch_size=(16, 16), logit_scale=40.0, threshold=0.0, refine_iterations=0
    )


def test_a_tower_without_cls_is_refused_at_once() -> None:
    visual = small_tower()
    dense = make(visual, METHODS["clipsurgery"])
    with pytest.raises(ValueError, match=r"'clipsurgery' weighs texts by \[CLS\]: pass its feat"):
        dense.final.logits(torch.ones(1, 2, 2, 32), None, torch.ones(3, 32))
    dense.tower.has_cls = False
    with pytest.raises(ValueError, match=r"weighs texts by \[CLS\], and this tower has none"):
        type(dense.final)(dense.tower, "clipsurgery", pieces=Pieces())

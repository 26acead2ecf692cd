"""ReCo's arithmetic: the recorded outputs of the released program, and what must hold of any."""

from __future__ import annotations

import pytest
import torch
from golden import predictor_arrays, predictor_cases
from torch import Tensor

from resclip.predictors.co_segmentation import co_segment, reco_scores, text_fit

CASES = [name for name, case in predictor_cases().items() if case["method"] == "reco"]


def close(got: Tensor, recorded: Tensor) -> None:
    assert got.shape == recorded.shape
    assert (got - recorded).abs().max() <= 1e-5 * recorded.abs().max()


def fits(patches: Tensor, text: Tensor, features: Tensor) -> Tensor:
    """(m, h, w): how well one text fits."""
    return text_fit(patches, text[None], (features.shape[2], features.shape[3]))[:, 0]


@pytest.mark.parametrize("block", (7, 1024))
@pytest.mark.parametrize("name", CASES)
def test_the_recorded_references_and_scores(name: str, block: int) -> None:
    recorded, case = predictor_arrays(name), predictor_cases()[name]
    contexts = recorded["references"].new_empty(0, recorded["references"].shape[1])
    if case["context_elimination"]:
        for features, clip, text in zip(
            recorded["context_features"],
            recorded["context_clip"],
            recorded["context_text"],
            strict=True,
        ):
            found = co_segment(features, fits(clip, text, features), contexts, block=block)
            contexts = torch.cat([contexts, found[None]])
        close(contexts, recorded["context_references"])
    references = torch.stack(
        [
            co_segment(features, fits(clip, text, features), contexts, block=block)
            for features, clip, text in zip(
                recorded["category_features"],
                recorded["category_clip"],
                recorded["text"],
                strict=True,
            )
        ]
    )
    close(references, recorded["references"])
    height, width = case["picture_size"]
    scores = reco_scores(
        recorded["image_features"][None],
        references,
        (height, width),
        recorded["image_clip"][None],
        recorded["text"],
    )[0, :, ::4, ::4]
    close(scores, recorded["scores"])
    assert (scores.argmax(0) == recorded["scores"].argmax(0)).float().mean() >= 0.999


def pictures(seed: int, count: int = 4) -> Tensor:
    return torch.randn(count, 8, 3, 5, generator=torch.Generator().manual_seed(seed))


def test_the_slip_lets_pictures_see_the_ones_behind_them() -> None:
    """Alone a picture has nothing behind it; of several some reference differs, and without it their order is free."""
    one = pictures(0, 1)
    assert torch.equal(co_segment(one), co_segment(one, released_slip=False))
    differs = [
        not torch.allclose(co_segment(some), co_segment(some, released_slip=False))
        for some in map(pictures, range(8))
    ]
    assert any(differs)
    some = pictures(1)
    forwards, backwards = (co_segment(each, released_slip=False) for each in (some, some.flip(0)))
    assert torch.allclose(forwards, backwards, atol=1e-6)


def test_what_all_pictures_share_is_found() -> None:
    """One location of each has the same feature, the rest is noise; a context of that feature rules it out."""
    some, shared = pictures(2), torch.zeros(8)
    shared[3] = 5.0
    for number, (row, column) in enumerate([(0, 0), (2, 4), (1, 2), (0, 3)]):
        some[number, :, row, column] = shared
    found = co_segment(some, released_slip=False)
    assert torch.allclose(found, shared / 5.0, atol=1e-6)
    nowhere = torch.ones(4, 3, 5)
    nowhere[:, 0, 0] = nowhere[:, 2, 4] = nowhere[:, 1, 2] = nowhere[:, 0, 3] = 0
    assert not torch.allclose(co_segment(some, nowhere), shared / 5.0, atol=0.1)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"features must be \(m, D, h, w\)"):
        co_segment(torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"weights must be \(4, 3, 5\)"):
        co_segment(pictures(0), torch.ones(4, 5, 3))
    with pytest.raises(ValueError, match="block must be at least 1"):
        co_segment(pictures(0), block=0)

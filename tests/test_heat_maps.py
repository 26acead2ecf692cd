"""Heat maps of free texts: order and range, batches, an image's own texts; and points for SAM."""

from __future__ import annotations

import pytest
import torch
from method_support import make, small_tower, text
from torch import Tensor
from torch.nn.functional import interpolate

from resclip import SFR, DenseEncoder
from resclip.heat_maps import heat_maps, points
from resclip.methods.catalogue import METHODS


def encoder(name: str = "gem") -> DenseEncoder:
    return make(small_tower(), METHODS[name])


@pytest.mark.parametrize("order", ("pixels", "patches"))
def test_every_map_goes_from_0_to_1(seed: int, order: str) -> None:
    """Over the pixels exactly; over the patches at least within, for resizing lowers the largest."""
    torch.manual_seed(seed)
    pixels, rows = torch.randn(2, 3, 64, 117), text(3, 32)
    dense = encoder()
    maps = heat_maps(dense, pixels, rows, order=order)
    raw = heat_maps(dense, pixels, rows, normalise=False)
    assert maps.shape == raw.shape == (2, 3, 64, 117)
    assert maps.min() >= 0
    assert maps.max() <= 1
    for one, of_raw in zip(maps.flatten(0, 1), raw.flatten(0, 1), strict=True):
        # Both orders are the raw map, moved and stretched.
        low, high = of_raw.aminmax()
        factor = (one.max() - one.min()) / (high - low)
        torch.testing.assert_close(one, (of_raw - low) * factor + one.min(), rtol=1e-4, atol=1e-5)
        if order == "pixels":
            assert one.min() == 0
            assert one.max() == 1


def test_raw_maps_are_cosines_at_the_wanted_size(seed: int) -> None:
    torch.manual_seed(seed)
    pixels, rows = torch.randn(1, 3, 64, 96), text(3, 32)
    dense = encoder("naclip")
    expected = dense.final.logits(dense(pixels).patches, None, rows)
    expected = interpolate(expected, (30, 50), mode="bilinear")
    maps = heat_maps(dense, pixels, rows, normalise=False, size=(30, 50))
    torch.testing.assert_close(maps, expected)


@pytest.mark.parametrize("order", ("pixels", "patches"))
def test_a_map_that_is_the_same_everywhere_is_0(order: str) -> None:
    """Feature surgery leaves nothing of a single text."""
    maps = heat_maps(encoder("clipsurgery"), torch.randn(1, 3, 64, 64), text(1, 32), order=order)
    assert torch.equal(maps, torch.zeros(1, 1, 64, 64))


@pytest.mark.parametrize("name", ("gem", "clipsurgery", "clipsurgery+sfr"))
def test_a_batch_with_an_images_own_texts_equals_single_images(seed: int, name: str) -> None:
    torch.manual_seed(seed)
    pixels, rows = torch.randn(2, 3, 64, 80), text(5, 32)
    dense = encoder(name)
    maps = heat_maps(dense, pixels, rows.split([2, 3]))
    assert [len(one) for one in maps] == [2, 3]
    for number, own in enumerate(rows.split([2, 3])):
        alone = heat_maps(dense, pixels[number, None], own)[0]
        torch.testing.assert_close(maps[number], alone, rtol=1e-4, atol=1e-4)
    if name == "gem":
        # Cosines know no other text, so that all may be compared at once.
        torch.testing.assert_close(
            maps[1], heat_maps(dense, pixels, rows)[1, 2:], rtol=1e-4, atol=1e-4
        )


def test_redundant_texts_are_compared_alone(seed: int) -> None:
    torch.manual_seed(seed)
    pixels, rows = torch.randn(1, 3, 64, 80), text(5, 32)
    dense = encoder("clipsurgery")
    both = heat_maps(dense, pixels, rows, redundant=rows[4], order="patches")
    alone = heat_maps(dense, pixels, rows[1, None], redundant=rows[4], order="patches")
    torch.testing.assert_close(both[:, 1, None], alone, rtol=1e-4, atol=1e-5)
    assert alone.max() > 0


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    (
        ({"order": "rows"}, ValueError, "order must be one of 'pixels', 'patches'"),
        ({"text": [torch.ones(2, 32)]}, ValueError, "the texts of each of 2 images; got 1"),
        ({"text": torch.ones(2, 31)}, ValueError, r"text must be \(Q, 32\)"),
        ({"text": [torch.ones(0, 32)] * 2}, ValueError, r"text must be \(Q, 32\)"),
        ({"text": "a cat"}, TypeError, r"text must be a tensor \(Q, E\), or one tensor"),
        ({"text": ["a cat", "a dog"]}, TypeError, r"text of an image must be a tensor \(Q, E\)"),
        ({"pixels": torch.ones(3, 64, 64)}, ValueError, r"pixels must be a \(B, 3, H, W\) tensor"),
        ({"encoder": small_tower()}, TypeError, "encoder must be a DenseEncoder"),
        ({"size": (0, 5)}, ValueError, "size must be"),
        ({"normalise": 1}, TypeError, "normalise must be True or False"),
        ({"redundant": torch.ones(1, 32)}, ValueError, "redundant must have 1 dimensions"),
    ),
)
def test_what_does_not_fit_is_refused(
    changes: dict[str, object], kind: type[Exception], words: str
) -> None:
    fitting = {"encoder": encoder(), "pixels": torch.ones(2, 3, 64, 64), "text": torch.ones(3, 32)}
    with pytest.raises(kind, match=words):
        heat_maps(**{**fitting, **changes})


def test_sfr_segments_by_each_images_own_texts(seed: int) -> None:
    """Labels of one image are numbers of its own texts."""
    torch.manual_seed(seed)
    dense = DenseEncoder(small_tower(), base="gem", sfr=SFR(weight=1.0))
    pixels = torch.randn(1, 3, 64, 64).expand(2, -1, -1, -1)
    rows = text(6, 32)
    first, second = heat_maps(dense, pixels, [rows[:2], rows[:5]], normalise=False)
    assert not torch.allclose(first, second[:2], atol=1e-4)


def peak(height: int, width: int, row: int, column: int) -> Tensor:
    """Highest at one cell of 2 × 2, falling with the distance from it."""
    rows = torch.arange(height // 2).repeat_interleave(2)[:, None] - row
    columns = torch.arange(width // 2).repeat_interleave(2)[None] - column
    return -(rows.square() + columns.square()).float()


def test_points_lie_where_the_map_is_high_and_where_it_is_low() -> None:
    """4 × 6 cells of 25 × 20 pixels: x goes along the width, y along the height."""
    found = points(peak(8, 12, 1, 4), (100, 120), threshold=1.0)
    assert found.coordinates.tolist() == [[90, 37], [10, 87]]
    assert found.labels.tolist() == [1, 0]


def test_a_lower_threshold_gives_more_points_up_to_half_of_each() -> None:
    plane = torch.arange(64.0).view(8, 8)
    some, most = (points(plane, (64, 64), threshold=threshold) for threshold in (0.92, 0.0))
    assert len(some.labels) == 6  # 3 of 16 cells reach 0.92.
    assert len(most.labels) == 16
    assert some.coordinates[:3].tolist() == [[24, 56], [40, 56], [56, 56]]
    assert some.coordinates[3:].tolist() == [[8, 8], [24, 8], [40, 8]]


def test_texts_of_one_object_share_their_negative_points() -> None:
    planes = torch.stack([peak(8, 8, 0, 0), 100 * peak(8, 8, 3, 3)])
    found = points(planes, (80, 80), threshold=1.0)
    assert found.coordinates[:2].tolist() == [[10, 10], [70, 70]]
    assert found.labels.tolist() == [1, 1, *[0] * (len(found.labels) - 2)]
    mean = sum((plane - plane.min()) / (plane.max() - plane.min()) for plane in planes)
    of_mean = points(mean, (80, 80), threshold=1.0)
    assert torch.equal(found.coordinates[2:], of_mean.coordinates[of_mean.labels == 0])


def test_points_of_a_single_patch_and_of_no_map() -> None:
    assert points(torch.ones(1, 1), (16, 16)).coordinates.shape == (0, 2)
    with pytest.raises(ValueError, match="maps must hold a text and a patch"):
        points(torch.ones(0, 4, 4), (16, 16))
    with pytest.raises(ValueError, match=r"maps must have 2 dimensions \(h, w\)"):
        points(torch.ones(4), (16, 16))
    with pytest.raises(TypeError, match=r"maps must be a torch.Tensor \(h, w\)"):
        points([[1.0]], (16, 16))
    with pytest.raises(ValueError, match="size must be"):
        points(torch.ones(4, 4), (16, 0))
    with pytest.raises(ValueError, match="threshold must lie between 0 and 1"):
        points(torch.ones(4, 4), (16, 16), threshold=2)

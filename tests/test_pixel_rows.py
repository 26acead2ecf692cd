"""Planes side by side on a CPU: the same as plane by plane, however they are cut."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from kernel_support import check_budget
from torch import Tensor

from resclip_kernels import online_softmax, patch_labels, upsample_argmax
from resclip_kernels.ops.pamr import portable as pamr
from resclip_kernels.pixel_rows import resized_lines


def planes_of(seed: int, queries: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, queries, height, width, generator=generator)


@pytest.mark.parametrize(
    "sizes",
    [
        ((3, 5), (17, 23)),
        ((1, 1), (4, 6)),
        ((9, 7), (4, 3)),
        ((3, 5), (17, 9), (30, 40)),
        ((4, 4), (4, 4), (9, 4)),
    ],
)
def test_lines_are_those_of_a_bilinear_resize(seed: int, sizes: tuple[tuple[int, int]]) -> None:
    planes = planes_of(seed, 6, *sizes[0])
    plain, exact = planes, planes.double()
    for size in sizes[1:]:
        plain = F.interpolate(plain, size=size, mode="bilinear", align_corners=False)
        exact = F.interpolate(exact, size=size, mode="bilinear", align_corners=False)
    rows = planes[0].flatten(1).T.contiguous()
    for first, last in ((0, sizes[-1][0]), (1, 3)):
        got = resized_lines(rows, sizes, first, last).T.unflatten(1, (last - first, -1))
        check_budget(got, plain[0, :, first:last], exact[0, :, first:last])


@pytest.mark.parametrize("pixels", (1, 70, 1 << 13))
def test_bands_do_not_matter(seed: int, monkeypatch: pytest.MonkeyPatch, pixels: int) -> None:
    guide, planes = planes_of(seed, 3, 50, 21), planes_of(seed, 5, 50, 21)
    monkeypatch.setattr(pamr, "BAND_PIXELS", pixels)
    bands = pamr.pixel_bands(guide[0], (3, 7))
    assert len(bands) == {1: 50, 70: 17}.get(pixels, 1)
    rows = pamr.refine_rows(planes[0].flatten(1).T.contiguous(), bands, 4)
    weights = pamr.pamr_weights(guide, (3, 7))
    expected = pamr.refine(planes, weights, 4, (3, 7))
    torch.testing.assert_close(rows.T.unflatten(1, (50, 21)), expected[0], rtol=1e-5, atol=1e-6)


def test_groups_have_equal_shares() -> None:
    assert pamr.plane_groups(150, 224 * 224) == [(0, 30), (30, 60), (60, 90), (90, 120), (120, 150)]
    assert pamr.plane_groups(9, 1 << 24) == [(0, 5), (5, 9)]
    assert pamr.plane_groups(0, 64) == []


def test_many_queries_go_through_one_plane_a_patch(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = planes_of(seed, 60, 4, 6) * 0.1
    logits[0, 3, 1, 2] = -torch.inf
    guide = planes_of(seed + 1, 3, 32, 48)
    refined: list[int] = []
    refine_rows = pamr.refine_rows

    def counted(rows: Tensor, bands: list[pamr.Band], iterations: int) -> Tensor:
        refined.append(rows.shape[1])
        return refine_rows(rows, bands, iterations)

    monkeypatch.setattr(pamr, "refine_rows", counted)
    arguments = {"guide": guide, "refine_iterations": 3, "dilations": (2, 4), "logit_scale": 40.0}
    label, best = upsample_argmax(logits, (32, 48), **arguments)
    assert sum(refined) == 4 * 6
    refined.clear()
    monkeypatch.setattr(online_softmax, "BASIS_BYTES", 0)
    expected, probability = upsample_argmax(logits, (32, 48), **arguments)
    assert sum(refined) == 60
    torch.testing.assert_close(best, probability, rtol=1e-4, atol=1e-6)
    assert (label == expected).float().mean() > 0.999


def test_labels_alone_are_the_same_labels(seed: int) -> None:
    """Without a threshold no probability is computed."""
    logits, image = planes_of(seed, 7, 4, 6), planes_of(seed + 1, 3, 32, 48)
    labels = [
        patch_labels(logits, image, patch_size=(8, 8), refine_iterations=2, threshold=threshold)
        for threshold in (0.0, 1e-9)
    ]
    assert torch.equal(*labels)


def test_an_infinite_logit_or_a_large_scale_is_no_nan() -> None:
    logits = torch.tensor([[[[-torch.inf, 1.0]], [[0.5, -torch.inf]]]])
    labels, best = upsample_argmax(logits, (2, 8), logit_scale=1e12)
    assert labels[0, 0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    assert best.isfinite().all()


@pytest.mark.parametrize("queries", (3, 10, 40))
@pytest.mark.parametrize("dtypes", ((torch.float32, torch.float64), (torch.float16, torch.float64)))
def test_a_guide_of_another_dtype(seed: int, queries: int, dtypes: tuple[torch.dtype, ...]) -> None:
    logits = planes_of(seed, queries, 3, 4).to(dtypes[0])
    guide = planes_of(seed + 1, 3, 30, 40).to(dtypes[1])
    labels, best = upsample_argmax(logits, (30, 40), guide=guide, refine_iterations=2)
    expected, _ = upsample_argmax(logits, (30, 40), guide=guide.float(), refine_iterations=2)
    assert best.dtype is torch.float32
    assert (labels == expected).float().mean() > 0.99


@pytest.mark.parametrize("queries", (3, 10))
def test_no_image_has_the_dtype_of_some(queries: int) -> None:
    _, best = upsample_argmax(torch.zeros(0, queries, 3, 4).double(), (30, 40))
    assert (best.dtype, best.shape) == (torch.float64, (0, 30, 40))

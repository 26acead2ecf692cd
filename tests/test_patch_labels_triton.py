"""Patch labels' kernels: against the plain formula in float64, and their properties."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from kernel_support import distinct_logits, kernel_device, nan_padded, spoilt_memory

from resclip_kernels import pamr, patch_labels
from resclip_kernels.launch import Target, watch
from resclip_kernels.ops.patch_labels import reference

triton = pytest.importorskip("triton")
kernels = pytest.importorskip("resclip_kernels.ops.patch_labels.triton")

DEVICE = kernel_device()

# Of scaled logits (scale 40, |logit| under 0.6, float32): 4 roundings of 2^-24 a value, weights of both axes off by
# 2^-23 between neighbours up to 1.2 apart, and 3 steps of PAMR, each 16 more roundings:
# 40 · ((4 + 48) · 0.6 · 2^-24 + 2 · 1.2 · 2^-23) = 8.6e-5.
MARGIN = 8.6e-5


def inputs(
    seed: int,
    queries: int = 9,
    size: tuple[int, int] = (19, 26),
    patch: tuple[int, int] = (8, 8),
    batch: int = 2,
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(batch, 3, *size, generator=generator)
    grid = (size[0] // patch[0], size[1] // patch[1])
    logits = distinct_logits(generator, batch, queries, grid)
    return logits.to(DEVICE), image.to(DEVICE)


def clear_patches(
    logits: torch.Tensor,
    image: torch.Tensor,
    patch: tuple[int, int],
    threshold: float,
    iterations: int,
) -> torch.Tensor:
    """(B, h, w): patches none of whose pixels lies within MARGIN of a tie or of the threshold, in float64."""
    planes = F.interpolate(logits.double(), size=image.shape[2:], mode="bilinear")
    planes = pamr(image.double(), planes, iterations=iterations, implementation="reference") * 40.0
    two = planes.topk(min(2, planes.shape[1]), dim=1).values
    open_pixels = (planes.softmax(dim=1).amax(dim=1) - threshold).abs() <= MARGIN
    if two.shape[1] == 2:
        open_pixels |= two[:, 0] - two[:, 1] <= MARGIN
    # So that there is something to judge.
    assert open_pixels.sum() <= max(2, 0.05 * open_pixels.numel())
    return F.max_pool2d(open_pixels.float(), patch, ceil_mode=False) == 0


@pytest.mark.parametrize(
    ("queries", "size", "patch", "threshold", "iterations", "dtype"),
    [
        pytest.param(9, (19, 26), (8, 8), 0.0, 0, torch.float32, id="remainders"),
        pytest.param(9, (19, 26), (8, 8), 0.4, 3, torch.float32, id="refined"),
        pytest.param(1, (16, 16), (8, 8), 0.5, 0, torch.float32, id="one-query"),
        pytest.param(2, (17, 33), (16, 16), 0.6, 0, torch.bfloat16, id="two-queries"),
        pytest.param(
            150, (15, 29), (14, 14), 0.1, 0, torch.float16, id="14-pixels-and-many-queries"
        ),
        pytest.param(20, (14, 28), (14, 14), 0.1, 1, torch.float16, id="14-pixels-refined"),
        pytest.param(3, (32, 65), (32, 32), 0.4, 0, torch.float32, id="large-patches"),
        pytest.param(9, (16, 17), (16, 16), 0.2, 2, torch.bfloat16, id="one-patch"),
        pytest.param(9, (12, 20), (3, 5), 0.2, 0, torch.float32, id="oblong-patches"),
        pytest.param(9, (4, 5), (1, 1), 0.2, 0, torch.float32, id="patches-of-one-pixel"),
    ],
)
def test_labels(seed: int, queries, size, patch, threshold, iterations, dtype) -> None:
    logits, image = inputs(seed, queries, size, patch)
    logits = logits.to(dtype)
    arguments = {"patch_size": patch, "threshold": threshold, "refine_iterations": iterations}
    expected = patch_labels(
        logits.double(), image.double(), implementation="reference", **arguments
    )
    got = patch_labels(logits, image, implementation="triton", **arguments)
    assert got.dtype is torch.int64
    clear = clear_patches(logits, image, patch, threshold, iterations)
    assert torch.equal(got[clear], expected[clear])
    # One open pixel opens a whole patch; even then few patches hang on it.
    assert (got != expected).sum() <= max(1, 0.05 * got.numel())


@pytest.mark.parametrize(
    ("patch", "dtype"),
    # A dtype decides the loads, whatever the patch: each in turn.
    [
        ((8, 8), torch.int32),
        ((14, 14), torch.int64),
        ((32, 32), torch.int32),
        ((5, 3), torch.int64),
        ((1, 1), torch.int32),
    ],
    ids=str,
)
def test_majority(seed: int, patch: tuple[int, int], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (1, patch[0] + 1, max(1, 32 // patch[1]) * patch[1] + patch[1] // 2)
    top = torch.iinfo(torch.int32).max + (dtype is torch.int64)
    for values in (list(range(40)), [0, 1, top, top - 1, 3, 2, 2])[patch[0] // 32 :]:
        choice = torch.randint(len(values), shape, generator=generator)
        # Every second column of a wider map, so that the strides are not those of a packed one.
        wide = torch.full((*shape[:2], 2 * shape[2]), -9, dtype=dtype, device=DEVICE)
        labels = wide[:, :, ::2]
        labels.copy_(torch.tensor(values, dtype=dtype)[choice])
        # torch.bincount would count up to 2^31: labels go there as their ranks.
        ranks = labels.unique()
        expected = ranks[reference.majority(torch.searchsorted(ranks, labels.contiguous()), patch)]
        assert torch.equal(kernels.majority(labels, patch), expected.long())


def test_the_smallest_label_wins_a_tie() -> None:
    labels = torch.tensor([[[5, 5, 7, 3], [2, 2, 3, 7], [9, 9, 9, 9]]], device=DEVICE)
    assert kernels.majority(labels, (2, 2)).tolist() == [[[2, 3]]]
    assert kernels.majority(labels, (1, 4)).tolist() == [[[5], [2], [9]]]
    # Four of each, in the order that would mislead a rule that takes the first or the last.
    pixels = torch.tensor([[[4, 1, 6, 4], [6, 1, 4, 6], [1, 6, 4, 1]]], device=DEVICE)
    assert kernels.majority(pixels, (3, 4)).item() == 1


@pytest.mark.parametrize("iterations", (0, 1))
def test_batch_strides_and_surroundings_do_not_matter(seed: int, iterations: int) -> None:
    logits, image = inputs(seed, queries=4, size=(9, 13), patch=(4, 4), batch=3)
    arguments = {"patch_size": (4, 4), "refine_iterations": iterations, "implementation": "triton"}
    expected = patch_labels(logits, image, **arguments)
    order = [2, 1]
    assert torch.equal(patch_labels(logits[order], image[order], **arguments), expected[order])
    assert torch.equal(patch_labels(nan_padded(logits), nan_padded(image), **arguments), expected)
    turned = logits.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert torch.equal(patch_labels(turned, image, **arguments), expected)


def test_every_patch_is_written(seed: int) -> None:
    logits, image = inputs(seed, queries=3)
    arguments = {"patch_size": (8, 8), "refine_iterations": 0, "implementation": "triton"}
    expected = patch_labels(logits, image, **arguments)
    with spoilt_memory():
        assert torch.equal(patch_labels(logits, image, **arguments), expected)


def test_the_threshold_sends_pixels_to_query_zero(seed: int) -> None:
    logits, image = inputs(seed, batch=1)
    arguments = {"patch_size": (8, 8), "refine_iterations": 0, "implementation": "triton"}
    assert (patch_labels(logits, image, threshold=1.0, **arguments) == 0).all()
    assert patch_labels(logits, image, threshold=0.0, **arguments).any()


def test_nan_is_refused_with_its_images(seed: int) -> None:
    logits, image = inputs(seed)
    logits[1, 2, 1, 2] = torch.nan
    message = "NaN; they do in image 1 of the batch: check"
    for implementation in ("auto", "triton", "torch", "reference"):
        with pytest.raises(ValueError, match=message):
            patch_labels(logits, image, patch_size=(8, 8), implementation=implementation)
    compiled = torch.compile(patch_labels, fullgraph=True, backend="aot_eager")
    with pytest.raises(ValueError, match=message):
        compiled(logits, image, patch_size=(8, 8), implementation="triton")


def test_launches() -> None:
    logits = torch.empty(2, 150, 16, 16, device="meta")
    image = torch.empty(2, 3, 230, 231, device="meta")
    for iterations in (0, 2):
        with watch(execute=False, target=Target("cuda", 90)) as watcher:
            options = {"patch_size": (14, 14), "refine_iterations": iterations}
            patch_labels(logits, image, implementation="triton", **options)
        steps = ["pamr_step_kernel"] * iterations
        group = ["upsample_planes_kernel", *steps, "fold_planes_kernel"]
        # 16 MiB hold 39 planes of two images, so that 150 make 4 groups.
        first = ["pamr_weights_kernel", *(4 * group)] if iterations else ["upsample_best_kernel"]
        assert watcher.names() == [*first, "majority_kernel"]
        assert watcher.launches[-1].programs == 2 * 16 * 16


def test_more_queries_than_patches_refine_one_plane_a_patch() -> None:
    logits = torch.empty(2, 847, 16, 16, device="meta")
    image = torch.empty(2, 3, 230, 231, device="meta")
    with watch(execute=False, target=Target("cuda", 90)) as watcher:
        patch_labels(logits, image, patch_size=(14, 14), implementation="triton")
    # 16 MiB hold 78 of an image's 256 planes.
    of_image = ["pamr_step_kernel"] * 4 * 10 + ["fold_basis_kernel"]
    shared = ["pamr_weights_kernel", "upsample_planes_kernel"]
    assert watcher.names() == [*shared, *of_image, *of_image, "majority_kernel"]

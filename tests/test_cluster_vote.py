"""CLIPtrase's clusters: DBSCAN and the median by other libraries, the vote by hand, images one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import median_filter as median_of_scipy
from sklearn.cluster import DBSCAN
from torch import Tensor
from torch.nn.functional import normalize

from resclip.encoder.trace import self_correlation
from resclip.methods.steps import ClusterVote
from resclip.steps import cluster_vote as module
from resclip.steps.cluster_vote import (
    cluster_map,
    cluster_vote,
    dbscan,
    local_correlation,
    median_filter,
    neighbours,
    times_cls,
    vote,
)


def blobs(rows: int, kinds: int = 5, spread: float = 0.25) -> Tensor:
    """Rows around a few centres, which are in no order."""
    return 2 * torch.randn(kinds, 4)[torch.randint(kinds, (rows,))] + spread * torch.randn(rows, 4)


@pytest.mark.parametrize("min_samples", (1, 2, 3, 7))
@pytest.mark.parametrize("eps", (0.2, 0.5, 1.0))
def test_clusters_are_those_of_scikit_learn(seed: int, eps: float, min_samples: int) -> None:
    """With noise, rows on the border of two clusters, and cores only by themselves."""
    torch.manual_seed(seed)
    rows = blobs(150).double()
    expected = DBSCAN(eps=eps, min_samples=min_samples).fit_predict(rows.numpy())
    assert dbscan(rows, eps, min_samples).tolist() == expected.tolist()


def test_a_border_row_goes_to_the_first_cluster() -> None:
    """Rows on a line, four at either end, and one between them that has too few neighbours to be a core."""
    rows = torch.tensor([5.0, 5.2, 5.4, 5.6, 4.1, 3.2, 3.0, 2.8, 2.6, 9.0])[:, None]
    assert dbscan(rows, 0.91, 4).tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1, -1]
    assert dbscan(rows.flip(0), 0.91, 4).tolist() == [-1, 0, 0, 0, 0, 0, 1, 1, 1, 1]


def test_distances_by_blocks_are_those_of_all_rows(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(seed)
    rows = blobs(37).double()
    expected = torch.cdist(rows, rows) <= 0.5
    assert torch.equal(neighbours(rows, 0.5), expected)
    monkeypatch.setattr(module, "BLOCK", 10)
    assert torch.equal(neighbours(rows, 0.5), expected)


def test_rows_far_from_zero_keep_their_distances() -> None:
    """In float32 the squares of these rows are 1e8, and their own rounding is 8."""
    rows = 1e4 + torch.tensor([0.0, 0.5, 2.0, 2.5])[:, None]
    assert dbscan(rows, 0.6, 2).tolist() == [0, 0, 1, 1]


def test_no_rows_and_rows_of_nan() -> None:
    assert dbscan(torch.ones(0, 3), 0.5, 1).tolist() == []
    assert dbscan(torch.full((4, 3), torch.nan), 0.5, 2).tolist() == [-1] * 4


@pytest.mark.parametrize("size", ((3, 3), (4, 9), (28, 20)))
def test_median_is_that_of_scipy(seed: int, size: tuple[int, int]) -> None:
    torch.manual_seed(seed)
    plane = torch.randn(size)
    before = plane.clone()
    expected = median_of_scipy(plane.numpy(), size=7, mode="reflect")
    assert np.array_equal(median_filter(plane).numpy(), expected)
    assert torch.equal(plane, before)


def test_correlation_is_the_mean_of_all_heads_maps(seed: int) -> None:
    torch.manual_seed(seed)
    query, key, value = (torch.randn(2, 3, 11, 8, dtype=torch.float64) for _ in range(3))
    maps = [normalize(x, dim=-1) @ normalize(x, dim=-1).mT for x in (query, key, value)]
    torch.testing.assert_close(self_correlation(query, key, value), (sum(maps) / 3).mean(dim=1))


def test_what_cls_has_in_common_is_taken_from_columns() -> None:
    correlation = torch.tensor([[1.0, 0.5, 0.1], [0.5, 1.0, 0.3], [0.1, 0.3, 1.0]])
    expected = torch.tensor([[0.5, 0.2], [0.0, 0.9]])
    torch.testing.assert_close(local_correlation(correlation), expected)
    assert local_correlation(correlation.bfloat16()).dtype is torch.float32


def test_vote_takes_the_most_frequent_label_and_the_smallest_of_two() -> None:
    labels = torch.tensor([[3, 3, 1, 2], [0, 3, 2, 1], [5, 4, 4, 5]], dtype=torch.uint8)
    regions = torch.tensor([[0, 0, 2, 2], [0, 0, 2, 2], [3, 3, 3, 3]])
    voted = vote(labels, regions)
    assert voted.dtype is torch.uint8
    assert voted.tolist() == [[3, 3, 1, 1], [3, 3, 1, 1], [4, 4, 4, 4]]


def halves(grid: tuple[int, int], column: int) -> Tensor:
    """(1 + n, 1 + n): patches left of a column correlate with each other alone, and so do the others; [CLS] with none.

    The last patch of the first row has nothing in common with any.
    """
    side = (torch.arange(grid[1]) >= column).expand(grid).clone().int()
    side[0, -1] = 2
    flat = side.flatten()
    correlation = torch.eye(1 + len(flat))
    correlation[1:, 1:] = (flat[:, None] == flat).float()
    return correlation


def test_a_picture_of_two_halves(seed: int) -> None:
    """On a grid that is not square; the patch that belongs to none joins the half around it."""
    torch.manual_seed(seed)
    grid, size = (5, 9), (40, 72)
    correlation = halves(grid, 4)[None]
    local = local_correlation(correlation[0])
    clusters = dbscan(local, 0.7, 3)
    assert clusters.view(grid).tolist() == [[0] * 4 + [1] * 4 + [-1]] + [[0] * 4 + [1] * 5] * 4
    regions = cluster_map(local, clusters, grid, size)
    is_right = (torch.arange(72) >= 32).expand(size)
    assert (regions[:, :28] == 0).all()
    assert (regions[:, 36:] == 1).all()
    labels = torch.where(is_right, 3, 1)
    labels[torch.rand(size) < 0.2] = 2
    voted = cluster_vote(labels[None], correlation, grid, ClusterVote())[0]
    assert torch.equal(voted, torch.where(regions == 1, 3, 1))


def test_images_of_a_batch_do_not_mix(seed: int) -> None:
    """One of them has no cluster at all and keeps its labels."""
    torch.manual_seed(seed)
    grid, labels = (5, 9), torch.randint(4, (3, 40, 72))
    alone = torch.eye(46)
    correlation = torch.stack([halves(grid, 4), alone, halves(grid, 6)])
    voted = cluster_vote(labels, correlation, grid, ClusterVote())
    assert torch.equal(voted[1], labels[1])
    for image in (0, 2):
        one = slice(image, image + 1)
        single = cluster_vote(labels[one], correlation[one], grid, ClusterVote())
        assert torch.equal(voted[one], single)
        assert len(voted[image].unique()) <= 2


def test_nan_has_no_clusters() -> None:
    labels = torch.randint(4, (1, 40, 72))
    broken = torch.full((1, 46, 46), torch.nan)
    assert torch.equal(cluster_vote(labels, broken, (5, 9), ClusterVote()), labels)


def test_times_cls_multiplies_query_by_query() -> None:
    text = torch.eye(3)
    logits = torch.ones(2, 3, 1, 2)
    cls = torch.tensor([[2.0, 0.0, 0.0], [0.0, 3.0, -4.0]])
    got = times_cls(logits, cls, text, 10.0)
    torch.testing.assert_close(got[:, :, 0, 1], torch.tensor([[10.0, 0, 0], [0, 6, -8]]))
    with pytest.raises(ValueError, match=r"expected logits \(B, Q, h, w\), cls"):
        times_cls(logits, cls[:1], text)


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    (
        ({"labels": torch.ones(1, 32, 32)}, TypeError, r"labels must be integers \(B, H, W\)"),
        ({"labels": torch.full((1, 32, 32), -1)}, ValueError, "each at least 0.*with -1"),
        ({"labels": torch.ones(32, 32).long()}, ValueError, r"labels must be \(B, H, W\)"),
        ({"correlation": torch.eye(4)[None]}, ValueError, r"\(1, 5, 5\).*with \[CLS\] first"),
        ({"grid": (4, 0)}, ValueError, "grid must be"),
        ({"step": None}, TypeError, "step must be a ClusterVote"),
    ),
)
def test_what_does_not_fit_is_refused(
    changes: dict[str, object], kind: type[Exception], words: str
) -> None:
    fitting = {
        "labels": torch.ones(1, 32, 32).long(),
        "correlation": torch.eye(5)[None],
        "grid": (2, 2),
        "step": ClusterVote(),
    }
    with pytest.raises(kind, match=words):
        cluster_vote(**{**fitting, **changes})


def test_a_map_of_noise_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at least one cluster; got noise alone"):
        cluster_map(torch.eye(4), torch.full((4,), -1), (2, 2), (8, 8))
    with pytest.raises(ValueError, match=r"regions must be \(H, W\) = \(2, 2\)"):
        vote(torch.ones(2, 2).long(), torch.zeros(2, 3).long())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_clusters(seed: int) -> None:
    torch.manual_seed(seed)
    labels, correlation = torch.randint(4, (1, 40, 72)), halves((5, 9), 4)[None]
    expected = cluster_vote(labels, correlation, (5, 9), ClusterVote())
    voted = cluster_vote(labels.cuda(), correlation.cuda(), (5, 9), ClusterVote())
    assert torch.equal(voted.cpu(), expected)

"""The Laplacian propagation: against float64, a dense solution and numbers by hand, and its properties."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from kernel_support import check_budget, fused_dtypes, kernel_device, nan_padded, spoilt_memory
from thread_support import with_threads
from torch import Tensor

from resclip_kernels import LaplacianPropagationOptions
from resclip_kernels.launch import Target, watch
from resclip_kernels.ops.laplacian_propagation import laplacian_propagation, portable, reference

kernels = pytest.importorskip(
    "resclip_kernels.ops.laplacian_propagation.triton", reason="the kernels need triton"
)

DEVICE = kernel_device()
FUSED = ("torch", "triton")
fused = pytest.mark.parametrize("implementation", FUSED)
every = pytest.mark.parametrize("implementation", (*FUSED, "reference"))


class Inputs(NamedTuple):
    """Arguments of `laplacian_propagation`."""

    logits: Tensor
    guide: Tensor
    text: Tensor
    options: dict[str, int]

    def run(self, implementation: str, **changes: Any) -> Tensor:
        return laplacian_propagation(
            *self[:3], implementation=implementation, **{**self.options, **changes}
        )

    def to(self, dtype: torch.dtype) -> Inputs:
        return Inputs(*(tensor.to(dtype) for tensor in self[:3]), self.options)


def inputs(
    seed: int,
    *,
    size: tuple[int, int] = (21, 33),
    queries: int = 3,
    batch: int = 2,
    dtype: torch.dtype = torch.float32,
    grid: int = 7,
    iterations: int = 2,
) -> Inputs:
    """Cosines as CLIP's, about 0.2 with blobs of 0.05, and a picture of areas with edges and noise."""
    generator = torch.Generator().manual_seed(seed)

    def blobs(channels: int) -> Tensor:
        coarse = torch.randn(
            batch, channels, -(-size[0] // 8), -(-size[1] // 8), generator=generator
        )
        return F.interpolate(coarse, size=size, mode="bilinear", align_corners=False)

    guide = blobs(3)
    guide = guide + guide.sign() + 0.1 * torch.randn(guide.shape, generator=generator)
    text = F.normalize(torch.randn(queries, 12, generator=generator), dim=1)
    logits = 0.2 + 0.05 * blobs(queries)
    options = {"grid": grid, "iterations": iterations}
    return Inputs(logits.to(DEVICE), guide.to(DEVICE), text.to(DEVICE), options).to(dtype)


def check(given: Inputs, implementation: str) -> None:
    with watch() as watcher:
        got = given.run(implementation)
    assert bool(watcher.names()) == (implementation == "triton")
    check_budget(got, given.run("reference"), given.to(torch.float64).run("reference"))


@pytest.mark.parametrize(("implementation", "dtype"), fused_dtypes(), ids=str)
def test_dtypes_are_within_budget(seed: int, implementation: str, dtype: torch.dtype) -> None:
    check(inputs(seed, dtype=dtype), implementation)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param({"size": (1, 1), "queries": 1}, id="one-pixel"),
        pytest.param({"size": (1, 40)}, id="one-line"),
        pytest.param({"size": (40, 1)}, id="one-column"),
        pytest.param({"size": (9, 12), "grid": 80}, id="not-pooled"),
        pytest.param({"size": (5, 40), "grid": 8}, id="pooled-along-one-axis"),
        pytest.param({"size": (20, 30), "grid": 1}, id="one-cell"),
        pytest.param({"iterations": 0}, id="no-step"),
        pytest.param(
            {"iterations": 1, "queries": 9, "batch": 1, "size": (7, 7)}, id="three-groups-of-planes"
        ),
        pytest.param({"size": (70, 70), "grid": 80, "iterations": 1, "queries": 1}, id="two-tiles"),
    ],
)
def test_shapes_and_numbers_are_within_budget(seed: int, case: dict[str, Any]) -> None:
    given = inputs(seed, **case)
    for implementation in FUSED:
        check(given, implementation)


@every
@pytest.mark.parametrize(("size", "grid"), [((20, 30), 7), ((9, 12), 80), ((5, 40), 8)], ids=str)
def test_cells_are_what_is_resized(
    seed: int, size: tuple[int, int], grid: int, implementation: str
) -> None:
    given = inputs(seed, size=size, grid=grid)
    cells = given.run(implementation, cells=True)
    down, across = LaplacianPropagationOptions(grid=grid).pooling(*size)
    assert cells.shape == (2, 3, size[0] // down, size[1] // across)
    resized = F.interpolate(cells, size=size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(resized, given.run(implementation), rtol=1e-5, atol=1e-6)


def test_many_steps_are_within_budget(seed: int) -> None:
    """A sum of neighbours in place of the first residual's differences would be off by several times as much."""
    check(inputs(seed, size=(60, 90), grid=30, iterations=25, queries=20, batch=1), "torch")
    check(inputs(seed, size=(10, 10), grid=10, iterations=8, queries=1, batch=1), "triton")


@every
def test_one_edge_by_hand(implementation: str) -> None:
    # Two pixels of equal colour and one query: p = g = 1, w = min(1, 2) = 1 and ρ = 1 · (1 + 1) = 2. Of the system
    # [[3, −1], [−1, 3]] F = 2 z, z = (1, 2), the solution is (5 / 4, 7 / 4), in one step: −L z is an eigenvector.
    logits = torch.tensor([1.0, 2.0], device=DEVICE).view(1, 1, 1, 2)
    guide, text = torch.zeros(1, 3, 1, 2, device=DEVICE), torch.ones(1, 1, device=DEVICE)
    call = {"implementation": implementation, "iterations": 1}
    got = laplacian_propagation(logits, guide, text, **call)
    torch.testing.assert_close(got.flatten(), logits.new_tensor([1.25, 1.75]), rtol=2e-6, atol=0)
    # The only edge has the mean difference: g_x = 1, w = exp(−5) · 2, F = z ± ((1, −1) · w / (2 + 2 w)).
    guide[..., 1] = 1.0
    weight = 2 * torch.tensor(-5.0).exp().item()
    move = weight / (2 + 2 * weight)
    got = laplacian_propagation(logits, guide, text, **call)
    expected = logits.new_tensor([1 + move, 2 - move])
    torch.testing.assert_close(got.flatten(), expected, rtol=1e-6, atol=0)
    # Two queries that are alike all over: shares of 1/2, g = 10.5 / 11, a = g / 2, ρ = (1 + a) / 4.
    logits, text = logits.expand(1, 2, 1, 2), torch.ones(2, 1, device=DEVICE)
    affinity = 10.5 / 11 / 2
    confidence, weight = (1 + affinity) / 4, (1 + affinity) * torch.tensor(-5.0).exp().item()
    move = weight / (confidence + 2 * weight)
    got = laplacian_propagation(logits, guide, text, **call)
    expected = logits.new_tensor([1 + move, 2 - move])
    torch.testing.assert_close(got[0, :, 0], expected.expand(2, 2), rtol=1e-6, atol=0)


def test_the_edges_weights_by_hand() -> None:
    # Luma 0, 3 / 1, 1: along x the differences are 3 and 0 of mean 1.5, along y 1 and 2 of mean 1.5.
    luma = torch.tensor([[0.0, 3.0], [1.0, 1.0]], dtype=torch.float64)
    guide = (luma / 1.0).expand(3, 2, 2)
    planes = torch.zeros(2, 2, 2, dtype=torch.float64)  # Shares of 1/2.
    agreement = torch.tensor([0.2, 0.4], dtype=torch.float64)
    graph = reference.graph_of(planes, guide, agreement)
    alike = 1 + 0.25 * 0.6
    ratio = torch.tensor([[2.0], [0.0]], dtype=torch.float64)
    across = (alike * (-5 * ratio).exp()).clamp(max=1)
    down = alike * (-5 * torch.tensor([[1.0, 2.0]], dtype=torch.float64) / 1.5).exp()
    torch.testing.assert_close(graph.across, across, rtol=1e-5, atol=0)
    torch.testing.assert_close(graph.down, down, rtol=1e-5, atol=0)
    torch.testing.assert_close(graph.confidence, torch.full_like(luma, 0.25 * alike))


def test_a_dense_solver_finds_the_same(seed: int) -> None:
    given = inputs(seed, size=(10, 9), grid=80, batch=1, iterations=200).to(torch.float64)
    planes, guide = given.logits[0], given.guide[0]
    graph = reference.graph_of(planes, guide, reference.text_agreement(given.text))
    unit = torch.eye(90, dtype=torch.float64).view(90, 10, 9)
    system = graph.confidence * unit + reference.laplacian(graph, unit)
    matrix = system.flatten(1)
    torch.testing.assert_close(matrix, matrix.mT)
    right = (graph.confidence * planes).flatten(1)
    solution = torch.linalg.solve(matrix, right.mT).mT.view_as(planes)
    # 1e-12 in the denominators leaves a residual of about that square root.
    torch.testing.assert_close(given.run("reference")[0], solution, rtol=0, atol=1e-4)
    assert (given.logits[0] - solution).abs().max() > 3e-3


def test_sizes_of_cells_are_rounded_half_to_even() -> None:
    options = LaplacianPropagationOptions()
    assert options.pooling(500, 667) == (6, 8)
    assert options.pooling(200, 280) == (2, 4)  # 2.5 and 3.5
    assert options.pooling(120, 39) == (2, 1)  # 1.5 and less than a half


@every
def test_a_flat_plane_stays_and_a_remainder_is_dropped(seed: int, implementation: str) -> None:
    given = inputs(seed, size=(23, 34), batch=1, queries=2)
    flat = given._replace(logits=torch.full_like(given.logits, 0.25))
    torch.testing.assert_close(flat.run(implementation), flat.logits, rtol=1e-6, atol=0)
    # Cells of 3 × 5 pixels: 21 of the lines and 30 of the columns.
    changed = given._replace(logits=given.logits.clone(), guide=given.guide.clone())
    changed.logits[..., 21:, :] = changed.logits[..., 30:] = 5.0
    changed.guide[..., 21:, :] = changed.guide[..., 30:] = -5.0
    assert torch.equal(changed.run(implementation), given.run(implementation))


@fused
def test_each_picture_is_on_its_own(seed: int, implementation: str) -> None:
    given = inputs(seed, queries=2)
    together = given.run(implementation)
    alone = given._replace(logits=given.logits[1:], guide=given.guide[1:])
    assert torch.equal(alone.run(implementation), together[1:])
    for name in ("logits", "guide"):
        spoilt = getattr(given, name).clone()
        spoilt[0].view(-1)[0] = torch.nan
        output = given._replace(**{name: spoilt}).run(implementation)
        assert torch.equal(output[1], together[1])
        assert output[0].isnan().any()


@fused
def test_views_nan_around_them_and_unwritten_memory_change_nothing(
    seed: int, implementation: str
) -> None:
    given = inputs(seed, queries=2, iterations=1)
    expected = given.run(implementation)
    padded = Inputs(*(nan_padded(tensor) for tensor in given[:3]), given.options)
    with spoilt_memory():
        torch.testing.assert_close(padded.run(implementation), expected, rtol=1e-5, atol=1e-6)
    channels_last = given._replace(
        logits=given.logits.contiguous(memory_format=torch.channels_last),
        guide=given.guide.contiguous(memory_format=torch.channels_last),
    )
    output = channels_last.run(implementation)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-6)
    assert output.is_contiguous()


def test_groups_and_bands_do_not_matter(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    given = inputs(seed, queries=5, batch=1, iterations=3)
    expected = given.run("torch")
    # Two planes at a time, and two lines of 6 cells' rows.
    monkeypatch.setattr(portable, "GROUP_BYTES", 2 * 4 * 21 * 33)
    monkeypatch.setattr(portable, "BAND_BYTES", 13 * 4 * 5)
    assert torch.equal(given.run("torch"), expected)


def test_threads_do_not_change_a_bit(seed: int) -> None:
    given = inputs(seed, size=(120, 150), grid=60, queries=30, batch=1, iterations=8)
    assert torch.equal(*with_threads((1, 2), lambda: given.run("torch")))


@every
def test_no_picture(implementation: str) -> None:
    given = inputs(0, size=(3, 4), batch=1)
    empty = given._replace(logits=given.logits[:0], guide=given.guide[:0])
    assert empty.run(implementation).shape == (0, 3, 3, 4)


@every
def test_what_is_given_stays_as_it_is(seed: int, implementation: str) -> None:
    """Not pooled, the planes are where the solver starts, and float32 needs no copy for it."""
    given = inputs(seed, size=(4, 5), grid=80, batch=1, iterations=1)
    before = given.logits.clone()
    assert given.run(implementation).data_ptr() != given.logits.data_ptr()
    assert torch.equal(given.logits, before)


@pytest.mark.parametrize("target", [Target("cuda", 90), Target("hip", "gfx942")], ids=str)
def test_launches_need_no_values_and_few_parts(target: Target) -> None:
    for size, grid in (((500, 667), 80), ((2048, 2048), 4096)):
        logits = torch.empty(2, 150, *size, device="meta")
        with watch(execute=False, target=target) as watcher:
            laplacian_propagation(
                logits,
                logits[:, :3],
                torch.empty(150, 512, device="meta"),
                grid=grid,
                implementation="triton",
            )
        names = watcher.names()
        assert names.count("propagation_product_kernel") == 25
        assert names.count("propagation_update_kernel") == 25
        shape = watcher.launches[-1].arguments["shape"]
        assert watcher.launches[-1].programs == 2 * shape.parts
        assert shape.parts <= max(kernels.MOST_PARTS, shape.tiles)
        assert shape.parts // shape.tiles * shape.planes >= 150


LOGITS, GUIDE, TEXT = torch.rand(2, 4, 6, 8), torch.rand(2, 3, 6, 8), torch.rand(4, 5)


@pytest.mark.parametrize(
    ("tensors", "options", "error", "message"),
    [
        ((LOGITS[0], GUIDE, TEXT), {}, ValueError, "logits must have 4 dimensions"),
        ((LOGITS.int(), GUIDE, TEXT), {}, TypeError, "logits must be floating point"),
        ((LOGITS, GUIDE[:, :2], TEXT), {}, ValueError, r"guide must be \(B, 3, 6, 8\)"),
        ((LOGITS, GUIDE[..., 1:], TEXT), {}, ValueError, "a picture of the logits' size"),
        ((LOGITS, GUIDE[:1], TEXT), {}, ValueError, "same number of images; got 2 and 1"),
        ((LOGITS, GUIDE, TEXT[:3]), {}, ValueError, "one row for each of .* 4 queries; got 3"),
        ((LOGITS, GUIDE, TEXT[0]), {}, ValueError, "text must have 2 dimensions"),
        ((LOGITS, GUIDE, TEXT.to("meta")), {}, ValueError, "logits and text must be on one device"),
        ((LOGITS[:, :0], GUIDE, TEXT[:0]), {}, ValueError, "number of queries must be at least 1"),
        ((LOGITS[..., :0], GUIDE[..., :0], TEXT), {}, ValueError, "each side of the logits"),
        ((LOGITS, GUIDE, TEXT), {"grid": 0}, ValueError, "grid must be at least 1; got 0"),
        ((LOGITS, GUIDE, TEXT), {"grid": 8.0}, TypeError, "grid must be an integer; got 8.0"),
        ((LOGITS, GUIDE, TEXT), {"iterations": -1}, ValueError, "iterations must be at least 0"),
    ],
)
def test_errors_say_what_was_expected(tensors, options, error, message) -> None:
    with pytest.raises(error, match=message):
        laplacian_propagation(*tensors, **options)

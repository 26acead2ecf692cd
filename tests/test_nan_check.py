"""NaN in logits: refused at once on a CPU, marked in the labels where the host would have to wait for a device."""

from __future__ import annotations

import pytest
import torch
from kernel_support import kernel_device
from method_support import small_tower, text
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from toys import toy_segmenter

from resclip import SFR, DenseEncoder
from resclip.inference import scheduler
from resclip.inference.pipeline import Strip
from resclip.inference.scheduler import Failure
from resclip_kernels import (
    check_labels,
    dispatch,
    nan_check,
    patch_labels,
    semantic_feedback,
    upsample_argmax,
)
from resclip_kernels.launch import Target, watch

IMPLEMENTATIONS = ("triton", "torch", "reference")
DEVICE = kernel_device()


@pytest.fixture(autouse=True)
def on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if values were on a device that the host would have to wait for."""
    monkeypatch.setattr(nan_check, "is_readable", lambda tensor: False)


def inputs(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, 5, 3, 4, generator=generator) * 0.1
    return logits.to(DEVICE), torch.randn(4, 3, 6, 8, generator=generator).to(DEVICE)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_broken_image_is_marked_all_over_and_no_other(seed: int, implementation: str) -> None:
    logits, image = inputs(seed)
    arguments = {"refine_iterations": 0, "implementation": implementation}

    def labels_of(logits: Tensor) -> list[Tensor]:
        return [
            patch_labels(logits, image, patch_size=(2, 2), **arguments),
            upsample_argmax(logits, (6, 8), **arguments)[0],
        ]

    expected = labels_of(logits)
    spoilt = logits.clone()
    spoilt[1, 2, 0, 3] = spoilt[3, 0, 2, 1] = torch.nan
    for came, wanted in zip(labels_of(spoilt), expected, strict=True):
        assert (came[[1, 3]] == -1).all()
        assert torch.equal(came[[0, 2]], wanted[[0, 2]])
        check_labels(wanted)
        with pytest.raises(ValueError, match="NaN; they do in image 1, 3 of the batch: check"):
            check_labels(came)
        with pytest.raises(ValueError, match="must not hold NaN: check"):
            check_labels(came[1:2])


def test_infinite_logits_and_no_image_are_no_nan() -> None:
    logits = torch.zeros(2, 3, 2, 2, device=DEVICE)
    logits[0] = -torch.inf
    logits[1, 0] = torch.inf
    check_labels(upsample_argmax(logits, (4, 4), implementation="torch")[0])
    check_labels(upsample_argmax(logits[:0], (4, 4), implementation="torch")[0])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_marked_labels_can_be_fed_back(implementation: str) -> None:
    labels = torch.full((2, 3, 4), -1, device=DEVICE)
    labels[1, 1:] = 2
    state = semantic_feedback(labels, implementation=implementation)
    assert state.maximum.isfinite().all()
    alone = semantic_feedback(labels[1:], implementation=implementation)
    assert torch.equal(state.row_sums[1:], alone.row_sums)


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        ([[0]], TypeError, "labels must be a tensor of labels; got"),
        (torch.zeros(3, 4), ValueError, r"labels must be \(B, H, W\); got \(3, 4\)"),
    ],
)
def test_what_is_no_label_map_is_refused(labels, error, message) -> None:
    with pytest.raises(error, match=message):
        check_labels(labels)


def test_an_image_fails_alone_where_its_labels_are_read() -> None:
    def strip(tag: str, first: int, label: int) -> Strip:
        return Strip(tag, (4, 3), first, torch.full((2, 3), label), torch.zeros(2, 3))

    torn = Failure("torn", OSError("cut short"))
    events = [
        *(strip("whole", first, 1) for first in (0, 2)),
        strip("broken", 0, 0),
        strip("broken", 2, -1),
        strip("broken early", 0, -1),
        strip("broken early", 2, 1),
        Failure("broken early", OSError("and torn")),
        torn,
        *(strip("after", first, 0) for first in (0, 2)),
    ]
    came = list(scheduler.whole_results(events))
    assert [event.tag for event in came] == ["whole", "broken", "broken early", "torn", "after"]
    assert [isinstance(event, Failure) for event in came] == [False, True, True, True, False]
    for failure in came[1:3]:
        assert "must not hold NaN: check" in str(failure.error)
    assert came[3] is torn


def test_a_second_pass_fed_with_marked_labels_is_nan_as_a_whole(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of logits that were NaN in the first pass alone, nothing may be left that looks like a result."""
    torch.manual_seed(seed)
    pixels, queries = torch.randn(2, 3, 48, 64), text(3, 32)
    dense = DenseEncoder(small_tower(layers=2), sfr=SFR(refine_iterations=0))
    labels = torch.arange(24).view(2, 3, 4) % 3
    monkeypatch.setattr(dense.final, "segment_patches", lambda *_: labels)
    expected = dense(pixels, queries)
    labels = torch.stack([labels[0], torch.full((3, 4), -1)])
    came = dense(pixels, queries)
    assert torch.equal(came.patches[0], expected.patches[0])
    assert expected.patches.isfinite().all()
    assert came.patches[1].isnan().all()


def test_predict_names_the_image_once_its_labels_are_there(seed: int) -> None:
    torch.manual_seed(seed)
    segmenter = toy_segmenter({"sfr": SFR(refine_iterations=0)})
    pixels = torch.randn(3, 3, 32, 32)
    expected = segmenter.predict(pixels)
    pixels[1, 0, 3, 5] = torch.nan
    with pytest.raises(ValueError, match=r"image 1 of pixels cannot be segmented: logits must not"):
        segmenter.predict(pixels)
    sizes = [(32, 32)] * 2
    rest = [labels for labels, _ in segmenter.predict_many([pixels[0], pixels[2]], sizes)]
    assert torch.equal(torch.stack(rest), expected[[0, 2]])


class Transfers(TorchDispatchMode):
    """Refuses copies from one device to another; values of "fake" tensors, which have none, are refused anyway."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        given = {value.device for value in arguments if isinstance(value, Tensor) and value.ndim}
        if isinstance(result, Tensor) and given and {result.device} != given:
            raise AssertionError(f"{function} copies from {given} to {result.device}")
        return result


def on_fake_gpu(run) -> None:
    """Call it with tensors that are on a GPU as far as torch can tell, where nothing may wait or be copied."""
    with (
        pytest.MonkeyPatch.context() as patch,
        FakeTensorMode(),
        watch(execute=False, target=Target("cuda", 90)),
        Transfers(),
    ):
        patch.setattr(dispatch, "compute_capability", lambda device: (9, 0))
        run(lambda *shape, **options: torch.empty(*shape, device="cuda", **options))


@pytest.mark.parametrize("implementation", ("triton", "torch"))
@pytest.mark.parametrize("queries", (7, 90))
def test_on_a_gpu_nothing_waits_and_nothing_is_copied_to_it(
    implementation: str, queries: int
) -> None:
    def run(empty) -> None:
        logits, image = empty(2, queries, 4, 6), empty(2, 3, 34, 50)
        chosen = {"implementation": implementation}
        patch_labels(logits, image, patch_size=(8, 8), threshold=0.3, **chosen)
        classes = empty(queries, dtype=torch.int64)
        for options in ({"through": (32, 48)}, {"guide": image, "refine_iterations": 2}):
            upsample_argmax(logits, (34, 50), query_to_class=classes, **options, **chosen)

    on_fake_gpu(run)


def test_a_copy_and_a_wait_would_be_seen() -> None:
    def copies(empty) -> None:
        classes = torch.empty(5, dtype=torch.int64, device="cpu")
        upsample_argmax(empty(1, 5, 2, 2), (4, 4), query_to_class=classes, implementation="triton")

    with pytest.raises(AssertionError, match="copies from"):
        on_fake_gpu(copies)
    with pytest.raises(DataDependentOutputException):
        on_fake_gpu(lambda empty: check_labels(empty(1, 5, 4, dtype=torch.int64)))

"""Room for large tensors: from the system in large pages, or from torch."""

from __future__ import annotations

import mmap

import pytest
import torch

from resclip_kernels import huge_pages


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float64))
def test_large_and_small_tensors_are_like_torchs(dtype: torch.dtype) -> None:
    like = torch.zeros(1)
    for shape in ((3, 5), (0, 4), (2, 1500, 3000)):
        room = huge_pages.empty(shape, like, dtype)
        expected = torch.empty(shape, dtype=dtype)
        assert (room.shape, room.dtype, room.device) == (expected.shape, dtype, like.device)
        assert room.is_contiguous()
        room.fill_(1.5)
        assert (room == 1.5).all()


def test_a_view_keeps_the_memory_and_other_devices_have_their_own() -> None:
    view = huge_pages.empty((4, 1 << 20), torch.zeros(1), torch.float32).fill_(2.0)[1]
    assert isinstance(huge_pages.empty((4, 1 << 20), view, torch.float32), torch.Tensor)
    assert (view == 2.0).all()
    assert huge_pages.empty((4, 1 << 20), torch.empty(1, device="meta"), torch.float32).is_meta


def test_a_system_without_large_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError("no")

    monkeypatch.setattr(mmap, "mmap", refuse)
    assert huge_pages.empty((2, 1 << 21), torch.zeros(1), torch.float32).fill_(1.0).sum() == 1 << 22

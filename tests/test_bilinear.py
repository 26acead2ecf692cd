"""Bilinear resizing of planes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from resclip_kernels.bilinear import resize_planes


@pytest.mark.parametrize("channels", (1, 3, 4))
@pytest.mark.parametrize("batch", (0, 1, 2))
def test_planes_are_those_of_torch(seed: int, batch: int, channels: int) -> None:
    planes = torch.randn(batch, channels, 6, 9, generator=torch.Generator().manual_seed(seed))
    resized = resize_planes(planes, (13, 5))
    assert resized.shape == (batch, channels, 13, 5)
    if batch:
        expected = F.interpolate(planes.double(), size=(13, 5), mode="bilinear").float()
        torch.testing.assert_close(resized, expected, atol=1e-5, rtol=0)


def test_three_planes_do_not_depend_on_the_number_of_threads(seed: int) -> None:
    planes = torch.randn(2, 3, 69, 56, generator=torch.Generator().manual_seed(seed))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = resize_planes(planes, (79, 64))
        torch.set_num_threads(2)
        assert torch.equal(resize_planes(planes, (79, 64)), alone)
    finally:
        torch.set_num_threads(before)

"""Logits that hold NaN: refused at once on a CPU, marked in the labels on a GPU, where asking would wait for it.

On a GPU all that is queued runs later than the call that queued it. So an image with NaN is found there by the device,
whose labels say it, and the host learns it where it reads labels anyway: `check_labels`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from resclip_kernels.checks import check_type

BROKEN = -1
"""The label of every pixel, or patch, of an image whose logits hold NaN."""


def broken_images(logits: Tensor) -> Tensor | None:
    """Which images of (B, Q, h, w) logits hold NaN, as (B,) booleans on their device that nobody has waited for.

    None where no image does, for that is known, or where there are no values (on "meta").

    Raises:
        ValueError: logits on a CPU that hold NaN, with the images that do.
    """
    if logits.is_meta or logits.numel() == 0:
        return None
    broken = logits.detach().amax(dim=(1, 2, 3)).isnan()
    if not is_readable(logits):
        return broken
    refuse(broken.tolist())
    return None


def is_readable(tensor: Tensor) -> bool:
    """Whether the host can read values without waiting for a device; while a graph is traced there are none."""
    return tensor.is_cpu and not torch.compiler.is_compiling()


def mark(broken: Tensor | None, labels: Tensor) -> Tensor:
    """The (B, …) labels with `BROKEN` all over the images that are: in place."""
    if broken is not None:
        labels.masked_fill_(broken.view(-1, *[1] * (labels.ndim - 1)), BROKEN)
    return labels


def check_labels(labels: Tensor) -> None:
    """What the host calls before it reads labels that `patch_labels` or `upsample_argmax` made on a GPU.

    An image whose logits hold NaN has the label −1 all over; on a CPU the ops themselves refuse it. One label of each
    image is read, which waits until the device has made it.

    Args:
        labels: (B, H, W) as an op gave them.

    Raises:
        TypeError, ValueError: no such tensor; or images whose logits held NaN, with their numbers.
    """
    check_type("labels", labels, Tensor, "a tensor of labels")
    if labels.ndim != 3:
        raise ValueError(f"labels must be (B, H, W); got {tuple(labels.shape)}")
    if labels.numel():
        refuse((labels[:, 0, 0] == BROKEN).tolist())


def refuse(broken: Sequence[bool]) -> None:
    """ValueError that names the images that are broken, if any is."""
    if not any(broken):
        return
    images = ", ".join(str(image) for image, bad in enumerate(broken) if bad)
    where = f"; they do in image {images} of the batch" if len(broken) > 1 else ""
    raise ValueError(
        f"logits must not hold NaN{where}: "
        "check the image and the features they were computed from, or leave it out"
    )

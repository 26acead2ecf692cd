"""Which of the many models to take: the default, a few others with what they are for, and where others are found."""

from __future__ import annotations

from typing import NamedTuple

DEFAULT_MODEL = "ViT-B-16"
DEFAULT_TAG = "openai"
"""The weights that are taken where no model is named: those that the papers measure."""


class Recommendation(NamedTuple):
    """A model with its weights, and what it is for."""

    model: str
    tag: str
    parameters: int
    """Of the image and the text side."""
    side: int
    """Side of the square images that it was trained on, in pixels."""
    patch: int
    """Side of its patches, in pixels."""
    runs_on: str
    purpose: str

    @property
    def gigabytes(self) -> float:
        """The weights as float32; a file that holds float16 has half."""
        return self.parameters * 4 / 1e9


RECOMMENDED = (
    Recommendation(
        DEFAULT_MODEL,
        DEFAULT_TAG,
        149_620_737,
        224,
        16,
        "CPU, GPU",
        "the default, and what most papers measure",
    ),
    Recommendation(
        "ViT-B-16",
        "laion2b_s34b_b88k",
        149_620_737,
        224,
        16,
        "CPU, GPU",
        "the same tower, trained on LAION-2B",
    ),
    Recommendation(
        "ViT-B-32",
        "openai",
        151_277_313,
        224,
        32,
        "CPU, GPU",
        "the quickest: a quarter of the patches, so outlines are coarser",
    ),
    Recommendation(
        "ViT-L-14",
        "openai",
        427_616_513,
        224,
        14,
        "GPU",
        "a larger tower and finer patches",
    ),
    Recommendation(
        "ViT-B-16-SigLIP2",
        "webli",
        375_187_970,
        224,
        16,
        "CPU, GPU",
        'class names in many languages; needs pip install "resclip[hf]"',
    ),
)

PUBLISHED_AVERAGES = {"ViT-B/16": 41.4, "ViT-L/14": 39.1}
"""mIoU in per cent of NACLIP + ResCLIP over eight datasets, by backbone (ResCLIP, tables 1 and 2)."""

REMOTE_SENSING = (
    (
        "RemoteCLIP",
        "ViT-B-32, ViT-L-14",
        "RemoteCLIP-ViT-B-32.pt and RemoteCLIP-ViT-L-14.pt of chendelong/RemoteCLIP on the Hugging Face hub",
    ),
    (
        "GeoRSCLIP",
        "ViT-B-32, ViT-L-14, ViT-H-14",
        "RS5M_ViT-B-32.pt, RS5M_ViT-L-14.pt and RS5M_ViT-H-14.pt of Zilun/GeoRSCLIP on the Hugging Face hub",
    ),
    (
        "SkyCLIP",
        "the model that its page names",
        "checkpoints that wangzhecheng/SkyScript on GitHub links to",
    ),
)
"""Weights that were trained on images from above, which open_clip has no tag for: name, --model, and the files."""

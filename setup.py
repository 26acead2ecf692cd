"""Packaging of resclip and resclip_kernels; the tools' settings are in pyproject.toml."""

from __future__ import annotations

import os
import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.findall(
    r'^__version__ = "(.+)"$', (ROOT / "resclip/version.py").read_text(), re.MULTILINE
)[0]
REPOSITORY = os.environ.get("RESCLIP_REPOSITORY", "").rstrip("/")
"""The address of the public repository, for whoever releases the package; empty: links into it are left out."""
CODE = re.compile(r"(^```.*?^```|`[^`\n]*`)", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?![a-z]+:|#)([^)\s]+)\)")


def described(text: str, repository: str) -> str:
    """The README as a package index can show it, where relative links and images lead nowhere.

    They lead into the repository's files of this version; without its address links become their text, and images go.
    """

    def absolute(found: re.Match[str]) -> str:
        image, words, path = found.groups()
        if repository:
            return f"{image}[{words}]({repository}/{'raw' if image else 'blob'}/v{VERSION}/{path})"
        return "" if image else words

    # Every second part is code, which stays as it is.
    parts = CODE.split(text)
    parts[::2] = [LINK.sub(absolute, part) for part in parts[::2]]
    return "".join(parts)


setup(
    name="resclip",
    version=VERSION,
    description="Training-free open-vocabulary segmentation from CLIP, with fused attention ops",
    long_description=described((ROOT / "README.md").read_text(encoding="utf-8"), REPOSITORY),
    long_description_content_type="text/markdown",
    project_urls={
        "Paper": "https://arxiv.org/abs/2411.15851",
        **(
            {
                "Source": REPOSITORY,
                "Changelog": f"{REPOSITORY}/blob/v{VERSION}/CHANGELOG.md",
                "Documentation": f"{REPOSITORY}/tree/v{VERSION}/docs",
            }
            if REPOSITORY
            else {}
        ),
    },
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10,<3.14",
    packages=find_packages(
        include=["resclip", "resclip.*", "resclip_kernels", "resclip_kernels.*"],
        exclude=[
            "resclip.builtin.training"
        ],  # Only whoever trains the built-in model anew needs it.
    ),
    package_data={
        "resclip": ["py.typed", "builtin/*.safetensors", "builtin/*.json", "data/*", "data/*/*"],
        "resclip_kernels": ["py.typed"],
    },
    install_requires=[
        "torch>=2.9",
        "open_clip_torch>=3.0,<4",
        "numpy>=1.26",
        "pillow>=10.1",
        "psutil>=5.9",
        "pyyaml>=5.1",
        "safetensors>=0.4",
        "tabulate>=0.10",
        "timm>=1.0.17",
        "tqdm>=4.60",
        'triton>=3.5; platform_system == "Linux"',
    ],
    extras_require={
        "batch": ["aiohttp>=3.9", "filelock>=4.3", "fsspec>=2024.2", "pyarrow>=16.0"],
        "eval": ["matplotlib>=3.8", "pycocotools>=2.0.8"],
        "formats": ["pandas>=2.0", "supervision>=0.26"],
        "export": ["onnx>=1.16", "onnxruntime>=1.18", "onnxscript>=0.5"],
        "geo": ["rasterio>=1.3.9"],
        "heif": ["pillow-heif>=0.16"],
        "hf": ["transformers>=4.49"],
        "limits": [
            "onnx>=1.16",
            "onnxruntime>=1.18",
            "openvino>=2025.0",
        ],  # Rivals of `resclip bench`.
        "video": ["av>=12"],
        "scale": ["filelock>=4.3", "fsspec>=2024.2", "pyarrow>=16.0", "ray[data]>=2.40"],
        "dev": [
            "aiohttp>=3.9",
            "av>=12",
            "build>=1.2",
            "filelock>=4.3",
            "fsspec>=2024.2",
            "hypothesis>=6.100",
            "matplotlib>=3.8",
            "mypy==2.4.1",
            "onnx>=1.16",
            "onnxruntime>=1.18",
            "onnxscript>=0.5",
            "opencv-python-headless>=4.9",
            "pandas>=2.0",
            "peft>=0.13",
            "pillow-heif>=0.16",
            "pyarrow>=16.0",
            "pycocotools>=2.0.8",
            "pytest>=8.0",
            "pytest-benchmark>=5.0",
            "pytest-xdist>=3.5",
            "rasterio>=1.3.9",
            "ray[data]>=2.40",
            "ruff==0.17.5",
            "scikit-learn>=1.4",
            "scipy>=1.11",
            "setuptools>=77",
            "shapely>=2.0",
            "supervision>=0.26",
            "torchao>=0.7",
            "transformers>=4.49",
        ],
    },
    entry_points={"console_scripts": ["resclip = resclip.cli:main"]},
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
)

"""`load`: valid names in its errors, devices and precisions, unknown words; and imports that wait."""

from __future__ import annotations

import subprocess
import sys
import warnings
from typing import Any

import pytest
import torch
from toys import random_image

from resclip import load
from resclip.errors import UnknownWordsWarning
from resclip.loading import choose_device, choose_precision


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "ViT-X"}, "unknown model 'ViT-X'"),
        ({"method": "magic"}, "unknown method 'magic'; use one of: clip"),
        ({"preset": "best"}, "unknown preset 'best'; use one of: released"),
        ({"device": "toaster"}, "device 'toaster' cannot be used"),
        ({"precision": "fp4"}, "unknown precision 'fp4'; use one of: fp32, fp16, bf16"),
    ],
)
def test_load_lists_what_is_valid(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(**{"classes": ["cat", "dog"], **arguments})


def test_devices_and_precisions() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_precision(None, torch.device("cpu")) is torch.float32
    assert choose_precision(None, torch.device("cuda")) is torch.float16
    assert choose_precision("bf16", torch.device("cpu")) is torch.bfloat16
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="'cuda' cannot be used"):
            choose_device("cuda")


def test_the_built_in_model_says_which_words_it_has_never_read() -> None:
    with pytest.warns(UnknownWordsWarning, match=r"never read 'zebra', 'giraffe', so.*house, tree"):
        load(classes=["sky", "zebra, giraffe", "tree"])
    with pytest.warns(UnknownWordsWarning, match=r"'7' and 2 more, so"):
        load(classes=[str(number) for number in range(10)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = load(classes=["sky", "night sky", "house, tree"]).segment(random_image(40, 60))
    assert result.settings["preset"] == "builtin"
    assert result.settings["model"] == "builtin"


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys, resclip.builtin\n"
        "from resclip.inference.memory import parse_memory\n"
        "assert parse_memory('8GiB') == 8 << 30\n"
        "print({'torch', 'open_clip'} & set(sys.modules))\n"
        "import resclip.models\n"
        "print({'open_clip', 'timm', 'transformers'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["set()", "set()"]

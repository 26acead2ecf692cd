"""`load`: valid names in its errors, devices and precisions, unknown words; and imports that wait."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cli_support import as_scene
from models_support import EMBED, OpenAIVisual, hugging_face_model, timm_model
from torch import Tensor, nn
from torch.nn.functional import normalize
from toys import random_image, toy_clip

from resclip import Vocabulary, load
from resclip.errors import UnknownWordsWarning
from resclip.loading import choose_device, choose_precision


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "ViT-X"}, "unknown model 'ViT-X'"),
        ({"method": "magic"}, "unknown method 'magic'; use one of: clip"),
        ({"preset": "best"}, "unknown preset 'best'; use one of: released"),
        ({"device": "toaster"}, "device 'toaster' cannot be used"),
        ({"device": "meta"}, "device 'meta' cannot be used"),
        ({"device": ["cpu"]}, r"device must be a name such as 'cpu', or None; got \['cpu'\]"),
        ({"precision": "fp4"}, "unknown precision 'fp4'; use one of: fp32, fp16, bf16"),
        ({"method": 5}, "method must be a name such as 'resclip', or a Method; got 5"),
        ({"rcs": {"foo": 1}}, "rcs must name options of layers, weight, temp.*; got 'foo'"),
        ({"max_memory": "1G"}, "max_memory must be an integer; got '1G'"),
        ({"max_memory": 0}, "max_memory must be at least 1; got 0"),
        ({"window": "a"}, "window must be an integer number of pixels; got 'a'"),
        ({"overview": 5}, "overview must be an Overview or None; got 5"),
        ({"cache": "x"}, "cache must be a TextCache, True .*; got 'x'"),
        ({"model": toy_clip(), "tokenizer": "x"}, "tokenizer must be a function of .*; got 'x'"),
        ({"model": np.zeros(2)}, "expected a CLIP model.*got ndarray"),
    ],
)
def test_load_lists_what_is_valid(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        load(**{"model": "builtin", "classes": ["sky", "tree"], **arguments})


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
        load("builtin", classes=["sky", "zebra, giraffe", "tree"])
    with pytest.warns(UnknownWordsWarning, match=r"'7' and 2 more, so"):
        load("builtin", classes=[str(number) for number in range(10)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = load("builtin", classes=["sky", "night sky", "house, tree"]).segment(
            as_scene(random_image(40, 60))
        )
    assert result.settings["preset"] == "builtin"
    assert result.settings["model"] == "builtin"


class OpenAIClip(nn.Module):
    """A model with the layout of OpenAI's `clip`: its text side is another toy's."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = OpenAIVisual()
        self.vocab_size, self.context_length = 49408, 16
        self.words = nn.Embedding(49408, EMBED)

    def encode_text(self, tokens: Tensor) -> Tensor:
        return self.words(tokens).mean(dim=1)


def own_tokenizer(prompts: list[str]) -> Tensor:
    return torch.tensor([[len(prompt) % 90 + 3] * 4 + [2] * 12 for prompt in prompts])


@pytest.mark.parametrize(
    ("make", "tokenizer"),
    (
        (toy_clip, None),
        (lambda: nn.DataParallel(toy_clip()), None),
        (OpenAIClip, None),
        (lambda: timm_model("EVA02").float(), own_tokenizer),
        (lambda: hugging_face_model("CLIPModel").float(), own_tokenizer),
        (lambda: hugging_face_model("SiglipModel").float(), own_tokenizer),
    ),
    ids=("open_clip", "DataParallel", "OpenAI", "timm", "CLIPModel", "SiglipModel"),
)
def test_a_model_that_is_there_already(make: Callable[[], Any], tokenizer: Any) -> None:
    torch.manual_seed(0)
    segmenter = load(
        make(), classes=["cat", "dog"], tokenizer=tokenizer, window=48, templates=["{}"]
    )
    result = segmenter.segment(random_image(48, 64))
    assert result.labels.shape == (48, 64)
    assert segmenter.settings["model"]


def test_a_tower_alone_takes_a_ready_vocabulary() -> None:
    host = timm_model("EVA02").float().visual
    words = Vocabulary(normalize(torch.randn(2, EMBED), dim=1), torch.arange(2), ["a", "b"])
    segmenter = load(host, classes=words, window=48)
    assert segmenter.segment(random_image(48, 64)).labels.shape == (48, 64)
    with pytest.raises(ValueError, match="no text side to encode names with"):
        load(host, classes=["a", "b"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    (
        ({"device": "cpu"}, "device says how a named model is loaded"),
        ({"pretrained": "openai"}, "pretrained says how a named model is loaded"),
        ({"precision": "fp16"}, "precision says how a named model is loaded"),
    ),
)
def test_how_to_load_makes_no_sense_for_what_is_loaded(arguments: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        load(toy_clip(), classes=["a", "b"], **arguments)


def test_a_tokenizer_is_asked_for_where_it_is_not_known() -> None:
    with pytest.raises(ValueError, match="100 tokens, not CLIP's 49,408: pass its tokenizer="):
        load(timm_model("EVA02").float(), classes=["a", "b"])
    with pytest.raises(ValueError, match="its tokenizer is not known: pass tokenizer="):
        load(hugging_face_model("CLIPModel").float(), classes=["a", "b"])
    with pytest.raises(ValueError, match="comes with its tokenizer"):
        load("builtin", classes=["sky", "tree"], tokenizer=own_tokenizer)


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys, resclip.builtin\n"
        "from resclip.inference.memory import parse_memory\n"
        "assert parse_memory('8GiB') == 8 << 30\n"
        "print({'torch', 'open_clip'} & set(sys.modules))\n"
        "import resclip.models\n"
        "import resclip.segmenter, resclip.loading\n"
        "print({'open_clip', 'timm', 'transformers', 'torch._dynamo'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["set()", "set()"]

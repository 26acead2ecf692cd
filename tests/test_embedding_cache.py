"""Text embeddings on disk: what is read back, what is not believed, and what tells two towers apart."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import open_clip
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from toys import CONFIG, toy_clip, toy_tokenizer

from resclip.text.embedding_cache import TextCache, default_directory, tower_fingerprint
from resclip.text.prompt_encoder import PromptEncoder

TOWER = "0" * 64
PROMPTS = ("a photo of a {}.", "猫/" * 5_000)  # Longer than a path may be.


@pytest.fixture
def embedding(seed: int) -> Tensor:
    return torch.randn(512, generator=torch.Generator().manual_seed(seed))


def equal_bits(one: Tensor | None, other: Tensor) -> bool:
    return one is not None and torch.equal(one.view(torch.int32), other.view(torch.int32))


def test_what_is_written_is_read_bit_for_bit(tmp_path: Path, embedding: Tensor) -> None:
    embedding[:4] = torch.tensor([0.0, -0.0, torch.nan, 1e-45])
    cache = TextCache(tmp_path / "not" / "yet" / "there")
    assert cache.read(TOWER, PROMPTS) is None
    cache.write(TOWER, PROMPTS, embedding)
    assert equal_bits(cache.read(TOWER, PROMPTS), embedding)
    assert equal_bits(TextCache(cache.directory).read(TOWER, list(PROMPTS)), embedding)
    (path,) = (entry for entry in tmp_path.rglob("*") if entry.is_file())
    assert path == cache.path(TOWER, PROMPTS)
    assert list(load_file(path)) == ["embedding"]


def test_another_tower_or_other_prompts_are_other_files(tmp_path: Path, embedding: Tensor) -> None:
    cache = TextCache(tmp_path)
    cache.write(TOWER, PROMPTS, embedding)
    for tower, prompts in (
        ("1" * 64, PROMPTS),
        (TOWER, PROMPTS[::-1]),
        (TOWER, PROMPTS[:1]),
        (TOWER, ["".join(PROMPTS)]),
        (TOWER, [PROMPTS[0], PROMPTS[1] + " "]),
    ):
        assert cache.read(tower, prompts) is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_a_damaged_file_is_missing_and_written_anew(
    tmp_path: Path, embedding: Tensor, data: st.DataObject
) -> None:
    """One byte changed, or the end cut off or grown: None or, where it was a space in the header, what was written."""
    cache = TextCache(tmp_path)
    cache.write(TOWER, PROMPTS, embedding)
    path = cache.path(TOWER, PROMPTS)
    whole = path.read_bytes()
    damage = data.draw(st.sampled_from(["header", "values", "cut", "grown"]))
    if damage == "cut":
        content = whole[: data.draw(st.integers(0, len(whole) - 1))]
    elif damage == "grown":
        content = whole + data.draw(st.binary(min_size=1, max_size=9))
    else:
        header = len(whole) - 512 * 4
        span = (0, header - 1) if damage == "header" else (header, len(whole) - 1)
        position = data.draw(st.integers(*span))
        changed = bytes([whole[position] ^ data.draw(st.integers(1, 255))])
        content = whole[:position] + changed + whole[position + 1 :]
    path.write_bytes(content)
    found = cache.read(TOWER, PROMPTS)
    assert found is None or (damage == "header" and equal_bits(found, embedding))
    cache.write(TOWER, PROMPTS, embedding)
    assert equal_bits(cache.read(TOWER, PROMPTS), embedding)


def test_a_foreign_file_is_not_believed(tmp_path: Path, embedding: Tensor) -> None:
    cache = TextCache(tmp_path)
    path = cache.path(TOWER, PROMPTS)
    cache.write(TOWER, ["another name"], embedding)
    cache.write("1" * 64, PROMPTS, embedding)
    for other in (cache.path(TOWER, ["another name"]), cache.path("1" * 64, PROMPTS)):
        shutil.copy(other, path)
        assert cache.read(TOWER, PROMPTS) is None
    for tensors in ({"embedding": embedding}, {"other": embedding}, {}):
        save_file(tensors, path)
        assert cache.read(TOWER, PROMPTS) is None


def test_a_cache_that_cannot_be_written_is_worth_a_warning(
    tmp_path: Path, embedding: Tensor
) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    cache = TextCache(in_the_way)
    with pytest.warns(RuntimeWarning, match=r"cannot write to the text cache .*set RESCLIP_CACHE"):
        cache.write(TOWER, PROMPTS, embedding)
    assert cache.read(TOWER, PROMPTS) is None
    cache = TextCache(tmp_path / ("x" * 300))
    assert cache.read(TOWER, PROMPTS) is None
    with pytest.warns(RuntimeWarning, match="cannot write"):
        cache.write(TOWER, PROMPTS, embedding)
    cache = TextCache(tmp_path)
    cache.path(TOWER, PROMPTS).mkdir(parents=True)
    assert cache.read(TOWER, PROMPTS) is None
    with pytest.warns(RuntimeWarning, match="cannot write"):
        cache.write(TOWER, PROMPTS, embedding)


def test_writers_at_once_leave_one_whole_file(tmp_path: Path, embedding: Tensor) -> None:
    """Readers in between see nothing or all of it."""

    def write_and_read(_: int) -> bool:
        cache = TextCache(tmp_path)
        before = cache.read(TOWER, PROMPTS)
        cache.write(TOWER, PROMPTS, embedding)
        after = cache.read(TOWER, PROMPTS)
        return (before is None or equal_bits(before, embedding)) and equal_bits(after, embedding)

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(write_and_read, range(100)))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [
        TextCache(tmp_path).path(TOWER, PROMPTS)
    ]


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({"RESCLIP_CACHE": "/own", "XDG_CACHE_HOME": "/xdg"}, "/own"),
        ({"RESCLIP_CACHE": "~/own"}, "/home/someone/own"),
        ({"RESCLIP_CACHE": "", "XDG_CACHE_HOME": "/xdg"}, "/xdg/resclip"),
        ({"XDG_CACHE_HOME": "relative"}, "/home/someone/.cache/resclip"),
        ({}, "/home/someone/.cache/resclip"),
    ],
)
def test_the_default_directory(
    variables: dict[str, str], wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RESCLIP_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/someone", **variables}.items():
        monkeypatch.setenv(name, value)
    assert default_directory() == TextCache().directory == Path(wanted)


def test_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("RESCLIP_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", fail)
    with pytest.raises(RuntimeError, match="set RESCLIP_CACHE"):
        default_directory()


def fingerprint_of(model: nn.Module, tokenizer: Callable[[list[str]], Tensor]) -> str:
    return tower_fingerprint(PromptEncoder(model, tokenizer))


def changed(name: str) -> nn.Module:
    """The toy with the last element of one weight moved by its smallest step."""
    model = copy.deepcopy(toy_clip())
    weight = model.state_dict()[name].view(-1)
    weight[-1] = torch.nextafter(weight[-1], torch.tensor(9.0))
    return model


def test_a_copy_of_a_tower_is_the_same_tower() -> None:
    fingerprint = fingerprint_of(toy_clip(), toy_tokenizer)
    assert len(fingerprint) == 64
    assert fingerprint_of(copy.deepcopy(toy_clip()), toy_tokenizer) == fingerprint


@pytest.mark.parametrize(
    ("name", "matters"),
    [
        ("visual.proj", False),
        ("logit_scale", False),
        ("text_projection", True),
        # Its last row, which no probe reads but for the end of text.
        ("token_embedding.weight", True),
        ("transformer.resblocks.0.ln_1.bias", True),
    ],
)
def test_one_bit_of_one_weight_is_another_tower_where_text_uses_it(
    name: str, matters: bool
) -> None:
    fingerprint = fingerprint_of(toy_clip(), toy_tokenizer)
    assert (fingerprint_of(changed(name), toy_tokenizer) != fingerprint) == matters


def test_the_same_weights_in_another_tower() -> None:
    """Another activation, precision or tokenizer. bfloat16 and back is rounded."""

    def shouting(prompts: list[str]) -> Tensor:
        return toy_tokenizer([prompt.replace("_", " ") for prompt in prompts])

    quick = open_clip.CLIP(**CONFIG, quick_gelu=True).eval()
    quick.load_state_dict(toy_clip().state_dict())
    half = copy.deepcopy(toy_clip()).bfloat16()
    models = (toy_clip(), quick, half, copy.deepcopy(half).float())
    fingerprints = {fingerprint_of(model, toy_tokenizer) for model in models}
    assert len(fingerprints | {fingerprint_of(toy_clip(), shouting)}) == len(models) + 1


def test_hugging_faces_names_of_the_image_tower_are_left_out() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            names = ("text_model", "text_projection", "vision_model", "visual_projection")
            self.model = nn.ModuleDict({name: nn.Linear(4, 4) for name in names})

        def encode_text(self, tokens: Tensor) -> Tensor:
            return self.model["text_projection"](self.model["text_model"](tokens[:, :4].float()))

    plain = fingerprint_of(Wrapped(), toy_tokenizer)
    wanted = {"vision_model": False, "visual_projection": False, "text_model": True}
    for name, matters in wanted.items():
        model = Wrapped()
        with torch.no_grad():
            model.model[name].weight[0, 0] += 1
        assert (fingerprint_of(model, toy_tokenizer) != plain) == matters


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_in_the_cache_is_not_opened(tmp_path: Path, embedding: Tensor) -> None:
    """It would wait for a writer for ever."""
    cache = TextCache(tmp_path)
    path = cache.path("tower", ["cat"])
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    assert cache.read("tower", ["cat"]) is None
    cache.write("tower", ["cat"], embedding)
    assert cache.read("tower", ["cat"]) is not None

"""Loading models: names, tags, local checkpoints, and what is refused."""

from __future__ import annotations

import copy
import json
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from models_support import TEXT, Payload, small_timm
from safetensors.torch import save_file
from toys import CONFIG, MODEL, toy_clip

from resclip.errors import ActivationWarning, WeightsUnavailable
from resclip.models import list_models, load_model
from resclip.models.loading import find_model, image_statistics, plain, warn_of_activation

CPU = torch.device("cpu")
TIMM_MODEL = "toy-map"
TIMM_CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {
        "timm_model_name": "vit_base_patch16_siglip_224",
        "timm_pool": "map",
        "timm_proj": "none",
        "image_size": [48, 64],
    },
    "text_cfg": {**TEXT, "vocab_size": 49408},
    "custom_text": True,
}


@pytest.fixture(autouse=True)
def toy_configs(tmp_path: Path) -> None:
    for name, config in ((MODEL, CONFIG), (TIMM_MODEL, TIMM_CONFIG)):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(config))
        open_clip.add_model_config(path)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.parametrize(
    ("write", "dtype"), [(save_file, torch.bfloat16), (torch.save, torch.float32)]
)
def test_a_local_checkpoint_is_loaded(tmp_path: Path, write: Any, dtype: torch.dtype) -> None:
    path = tmp_path / ("weights.safetensors" if write is save_file else "weights.pt")
    write({name: value.clone() for name, value in toy_clip().state_dict().items()}, path)
    loaded = load_model(MODEL, str(path), device=CPU, dtype=dtype)
    assert loaded.visual.dtype is dtype
    assert torch.equal(loaded.model.visual.proj, toy_clip().visual.proj.to(dtype))
    assert loaded.visual.visual is loaded.model.visual
    assert not loaded.model.training
    tokens = loaded.tokenizer(["a cat"])
    assert tokens.shape == (1, 16)
    assert loaded.model.encode_text(tokens).shape == (1, loaded.visual.output_dim)


def test_a_timm_tower_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    with small_timm():
        save_file(open_clip.create_model(TIMM_MODEL).state_dict(), path)
        loaded = load_model(TIMM_MODEL.upper(), str(path), device=CPU)
    assert not loaded.visual.has_cls
    assert loaded.visual.trained_grid == (3, 4)
    assert loaded.model.encode_text(loaded.tokenizer(["a cat"])).shape == (1, 32)


def test_the_builtin_model_is_loaded() -> None:
    loaded = load_model("builtin", device=CPU)
    assert loaded.visual.patch_size == (8, 8)
    assert loaded.visual.trained_grid == (14, 14)
    assert loaded.mean == tuple(open_clip.OPENAI_DATASET_MEAN)
    tokens = loaded.tokenizer(["a red car"])
    assert loaded.model.encode_text(tokens).shape == (1, loaded.visual.output_dim)


def test_a_folder_in_open_clips_format_is_loaded(tmp_path: Path) -> None:
    statistics = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    config = {"model_cfg": CONFIG, "preprocess_cfg": statistics}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    save_file(toy_clip().state_dict(), tmp_path / "open_clip_model.safetensors")
    loaded = load_model(f"local-dir:{tmp_path}", device=CPU)
    assert torch.equal(loaded.model.visual.proj, toy_clip().visual.proj)
    assert (loaded.mean, loaded.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_a_folder_with_another_tower_is_refused(tmp_path: Path) -> None:
    vision = {"layers": [1, 1, 1, 1], "width": 8, "image_size": 64}
    config = {**CONFIG, "vision_cfg": vision}
    written = {"model_cfg": config, "preprocess_cfg": {}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(written))
    state = {name: value.clone() for name, value in open_clip.CLIP(**config).state_dict().items()}
    save_file(state, tmp_path / "open_clip_model.safetensors")
    with pytest.raises(TypeError, match=r"a ModifiedResNet, .*'ViT-B-16'"):
        load_model(f"local-dir:{tmp_path}", device=CPU)


@pytest.mark.parametrize(
    ("name", "mean"),
    [
        ("ViT-B-16-SigLIP", (0.5, 0.5, 0.5)),
        ("ViT-H-14-CLIPA", (0.485, 0.456, 0.406)),
        ("EVA02-B-16", open_clip.OPENAI_DATASET_MEAN),
        ("ViT-L-14", open_clip.OPENAI_DATASET_MEAN),  # One of its tags differs from the others.
        (MODEL, open_clip.OPENAI_DATASET_MEAN),  # Without tags.
    ],
)
def test_a_checkpoint_has_the_statistics_of_its_models_tags(
    name: str, mean: tuple[float, ...], tmp_path: Path
) -> None:
    """A file says nothing of them, and open_clip would take OpenAI's whatever the model."""
    path = tmp_path / "weights.safetensors"
    path.touch()
    model = open_clip.create_model(MODEL)
    assert image_statistics(model, name, str(path))[0] == mean


def test_a_pickle_with_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(pickle.dumps({"state_dict": Payload()}, protocol=2))
    with pytest.raises(WeightsUnavailable, match="safetensors"):
        load_model(MODEL, str(path), device=CPU)
    assert "ran" not in capsys.readouterr().out


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"visual.proj": torch.zeros(2, 2)}, path)
    with pytest.raises(WeightsUnavailable, match="state dict"):
        load_model(MODEL, str(path), device=CPU)


@pytest.mark.parametrize(
    ("name", "pretrained", "said"),
    [
        ("ViT-B-32", "laion2b_s34b_b79k", "'ViT-B-32'.*'laion2b_s34b_b79k'.*pretrained="),
        ("hf-hub:nobody/nothing", None, "'hf-hub:nobody/nothing' .*network"),
        ("ViT-B-16-SigLIP", "webli", "tokenizer of 'ViT-B-16-SigLIP' .*network"),
    ],
)
def test_what_cannot_be_fetched_says_what_to_do(name: str, pretrained: Any, said: str) -> None:
    with pytest.raises(WeightsUnavailable, match=said) as caught:
        load_model(name, pretrained, device=CPU)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "pretrained", "message"),
    [
        ("ViT-Z-99", "openai", "'ViT-Z-99'.*'builtin'.*ViT-B-16"),
        ("RN50", "openai", "'RN50'.*'ViT-B-16'"),
        ("ViT-B-16", None, "pretrained.*openai"),
        ("ViT-B-16", "nothing", "'nothing'.*openai"),
        ("ViT-B-16", "missing.pt", "no checkpoint at 'missing.pt'"),
        ("ViT-B-16", "folder/missing", "no checkpoint at 'folder/missing'"),
        ("builtin", "openai", "leave out pretrained="),
        ("hf-hub:nobody/nothing", "openai", "leave out pretrained="),
    ],
)
def test_wrong_names_list_the_valid_ones(name: str, pretrained: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_model(name, pretrained, device=CPU)


def test_names_may_be_spelt_otherwise() -> None:
    assert find_model("vit-b/16", "openai") == "ViT-B-16"
    names = open_clip.list_models()
    assert len(set(map(plain, names))) == len(names)


def test_listed_models_have_towers_that_can_be_used() -> None:
    models = dict(list_models())
    assert "openai" in models["ViT-B-16"]
    assert {"ViT-L-14-336", "EVA01-g-14", "PE-Core-B-16", "ViT-B-16-SigLIP"} <= set(models)
    assert not {"RN50", "convnext_base", "EVA02-E-14", "MobileCLIP-B", "ViTamin-B"} & set(models)


def state() -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in toy_clip().state_dict().items()}


def under(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in state().items()}


def holds_itself() -> dict[str, Any]:
    content: dict[str, Any] = {"epoch": 3}
    content["state_dict"] = content
    return content


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": under("model."), "epoch": 3, "loss": torch.zeros(1)},
        {"model": under("module."), "optimizer": {"state": {}}},
        under("_orig_mod."),
        {"state_dict": {**under("clip_model._orig_mod."), "criterion.scale": torch.ones(1)}},
    ],
    ids=("Lightning", "DataParallel", "compiled", "a module around it"),
)
def test_what_is_wrapped_around_weights_is_taken_off(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(content, path)
    loaded = load_model(MODEL, str(path), device=CPU)
    assert torch.equal(loaded.model.visual.proj, toy_clip().visual.proj)


def test_a_torchscript_archive_is_read_as_weights_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenAI's own files are such archives, with numbers beside the weights, in half precision."""
    model = copy.deepcopy(toy_clip()).half()
    model.register_buffer("input_resolution", torch.tensor(64))
    path = tmp_path / "weights.pt"
    torch.jit.script(model).save(path)
    monkeypatch.setattr(torch.jit, "load", None)
    loaded = load_model(MODEL, str(path), device=CPU)
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name].float()), name


def test_an_archive_with_other_objects_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/constants.pkl", b"")
        archive.writestr("a/data.pkl", pickle.dumps(Payload(), protocol=2))
    with pytest.raises(WeightsUnavailable, match="holds '.*print', which is no part of"):
        load_model(MODEL, str(path), device=CPU)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\n", "pointer of Git LFS"),
        (b"<!doctype html><html>", "a web page"),
        (b"PK\x03\x04 cut", "cut off or damaged"),
        (b"\x80\x02}q\x00(X", "cut off or damaged"),
        ((1 << 20).to_bytes(8, "little") + b'{"a', "cut off or damaged"),
        (b"P6 4 4 255", "begins with b'P6 4 4 255'"),
        (toy_clip(), r"pickle of Python objects \(open_clip.*save its state dict alone"),
        ({"epoch": 3}, "no tensors by name, but 'epoch'"),
        ([1, 2], "holds a list, not a state dict"),
        (holds_itself(), "no tensors by name, but itself"),
        ({"ema": state(), "epoch": 3}, r"of which 'ema' has tensors .*\(FILE\)\['ema'\]"),
        (under("student."), "whose name has 'student.' in front: take that off"),
        ({**state(), "visual.proj": torch.zeros(64, 32).to_sparse()}, "'visual.proj' is sparse"),
        ({**state(), "visual.proj": torch.zeros(64, 32, device="meta")}, "has no data"),
        ({**state(), "visual.proj": torch.zeros(64, 32, dtype=torch.int8)}, "is of torch.int8"),
        (
            {**state(), "visual.positional_embedding": torch.zeros(12, 64)},
            r"visual.positional_embedding is \(12, 64\) there .*is otherwise of this model's kind",
        ),
        ({"visual.conv1.weight": torch.zeros(8, 3, 4, 4)}, "width 8 with patches of 4 alone"),
        (
            {"vision_model.x": torch.zeros(8)},
            "a CLIPModel of transformers: .*'transformers:FOLDER'",
        ),
        ({"visual.layer1.0.conv1.weight": torch.zeros(8)}, "looks like a ResNet"),
        (
            {
                "token_embedding.weight": torch.zeros(2),
                "visual.conv1.weight": torch.zeros(768, 3, 16, 16),
                "visual.proj": torch.zeros(768, 512),
                **{f"visual.transformer.resblocks.{n}.x": torch.zeros(1) for n in range(12)},
            },
            r"begins with 'token_embedding.weight' \(2,\), .*looks like .*'ViT-B-16'",
        ),
        ({**state(), "visual.proj": torch.full((64, 32), torch.nan)}, "visual.proj holds NaN"),
    ],
)
def test_a_file_that_does_not_fit_says_what_it_is(content: Any, said: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(WeightsUnavailable, match=said) as caught:
        load_model(MODEL, str(path), device=CPU)
    assert len(str(caught.value)) < 700


def test_weights_that_may_be_of_another_activation_are_told(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    with pytest.warns(ActivationWarning, match="weights.pt does not say .*'ViT-B-32-quickgelu'"):
        warn_of_activation("ViT-B-32", path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in (MODEL, "ViT-B-32-quickgelu", "ViT-B-16-SigLIP", "ViT-S-32-alt"):
            warn_of_activation(name, path)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    config = {**CONFIG, "text_cfg": {**CONFIG["text_cfg"], "vocab_size": 100}}
    written = {"model_cfg": config, "preprocess_cfg": {}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(written))
    save_file(
        {name: value.clone() for name, value in open_clip.CLIP(**config).state_dict().items()},
        tmp_path / "open_clip_model.safetensors",
    )
    with pytest.raises(WeightsUnavailable, match=r"ids up to 49,407 .*text side has 100"):
        load_model(f"local-dir:{tmp_path}", device=CPU)

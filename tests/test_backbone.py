"""Loading models: names, tags, local checkpoints, and what is refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from toys import CONFIG, MODEL, toy_clip

from resclip.backbone import list_models, load_model, resize_position_embedding
from resclip.errors import WeightsUnavailable

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def toy_config(tmp_path: Path) -> None:
    path = tmp_path / f"{MODEL}.json"
    path.write_text(json.dumps(CONFIG))
    open_clip.add_model_config(path)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


class Payload:
    """Unpickling this would run code."""

    def __reduce__(self):
        return (print, ("code from a checkpoint ran",))


@pytest.mark.parametrize("ending", ("safetensors", "pt"))
def test_a_local_checkpoint_is_loaded(tmp_path: Path, ending: str) -> None:
    state = {name: value.clone() for name, value in toy_clip().state_dict().items()}
    path = tmp_path / f"weights.{ending}"
    if ending == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    loaded = load_model(MODEL, str(path), device=CPU)
    assert torch.equal(loaded.model.visual.proj, toy_clip().visual.proj)
    assert not loaded.model.training
    assert loaded.tokenizer(["a cat"]).shape == (1, 16)


def test_half_precision_holds_half_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(toy_clip().state_dict(), path)
    loaded = load_model(MODEL, str(path), device=CPU, dtype=torch.bfloat16)
    assert loaded.model.visual.proj.dtype is torch.bfloat16


def test_a_pickle_with_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(pickle.dumps({"state_dict": Payload()}, protocol=2))
    with pytest.raises(WeightsUnavailable, match="safetensors or a pickle of tensors alone"):
        load_model(MODEL, str(path), device=CPU)
    assert "ran" not in capsys.readouterr().out


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"visual.proj": torch.zeros(2, 2)}, path)
    with pytest.raises(WeightsUnavailable, match="must be a state dict of this model"):
        load_model(MODEL, str(path), device=CPU)


def test_weights_that_cannot_be_fetched_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(WeightsUnavailable) as caught:
        load_model("ViT-B-32", "laion2b_s34b_b79k", device=CPU)
    message = str(caught.value)
    assert "'ViT-B-32' with pretrained 'laion2b_s34b_b79k'" in message
    assert "pass the file's path as pretrained" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "pretrained", "message"),
    [
        ("ViT-Z-99", "openai", "unknown model 'ViT-Z-99'; use 'builtin' or one of: .*ViT-B-16"),
        ("RN50", "openai", "'RN50' has no plain vision transformer tower; .*'ViT-B-16'"),
        ("ViT-B-16", None, "needs pretrained weights: a tag of openai"),
        ("ViT-B-16", "nothing", "no pretrained tag 'nothing'; it has: openai"),
        ("ViT-B-16", "missing.pt", "no checkpoint at 'missing.pt'"),
        ("builtin", "openai", "comes with its weights"),
    ],
)
def test_wrong_names_list_the_valid_ones(name: str, pretrained: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_model(name, pretrained, device=CPU)


def test_listed_models_have_plain_towers() -> None:
    models = dict(list_models())
    assert "openai" in models["ViT-B-16"]
    assert {"ViT-L-14", "ViT-L-14-336", "ViT-H-14", "ViT-g-14", "ViT-B-32"} <= set(models)
    assert not {"RN50", "coca_ViT-B-32", "EVA02-B-16", "ViT-B-16-SigLIP"} & set(models)


def test_position_embedding_at_its_own_grid_is_untouched() -> None:
    embedding = torch.randn(1 + 9, 4)
    assert resize_position_embedding(embedding, (3, 3), (3, 3)) is embedding
    resized = resize_position_embedding(embedding, (3, 3), (5, 2))
    assert resized.shape == (11, 4)
    assert torch.equal(resized[0], embedding[0])

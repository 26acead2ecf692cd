"""Hugging Face's CLIPModel against open_clip's model of the same weights, and loading one from a folder.

Values are compared in float64, where the two differ by rounding alone: the bound is 1e-10 of the largest value.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from models_support import Payload, attend, randomise, run_blocks
from torch import Tensor, nn

from resclip.errors import WeightsUnavailable
from resclip.models import adapt, load_model
from resclip.models.hugging_face import HuggingFaceClip, load_clip, pooled

transformers = pytest.importorskip("transformers")

CPU = torch.device("cpu")
EMBED, WIDTH, TEXT_WIDTH, CONTEXT, LAYERS = 24, 32, 48, 16, 2
WORDS = ["<bos>", "<eos>", "a", "photo", "of", "cat", "dog"]


def open_clip_twin(quick_gelu: bool = True) -> nn.Module:
    """A small open_clip model of OpenAI's kind, in float64 with all weights random."""
    vision = {"image_size": 48, "patch_size": 16, "width": WIDTH, "head_width": 16}
    text = {"context_length": CONTEXT, "vocab_size": 64, "width": TEXT_WIDTH, "heads": 3}
    for sizes in (vision, text):
        sizes["layers"] = LAYERS
    return randomise(open_clip.CLIP(EMBED, vision, text, quick_gelu=quick_gelu))


def configuration(eos_token_id: int = 63, activation: str = "quick_gelu") -> Any:
    """Of the same sizes."""
    both = {"num_hidden_layers": LAYERS, "hidden_act": activation}
    text = {
        **both,
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 4 * TEXT_WIDTH,
        "num_attention_heads": 3,
        "max_position_embeddings": CONTEXT,
        "vocab_size": 64,
        "bos_token_id": 0,
        "eos_token_id": eos_token_id,
        "pad_token_id": eos_token_id,
    }
    vision = {
        **both,
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_attention_heads": 2,
        "image_size": 48,
        "patch_size": 16,
        "projection_dim": EMBED,
    }
    return transformers.CLIPConfig(
        text_config=text, vision_config=vision, projection_dim=EMBED, logit_scale_init_value=1.0
    )


def translated(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's state dict under Hugging Face's names."""
    renamed = {
        "logit_scale": state["logit_scale"],
        "visual_projection.weight": state["visual.proj"].T,
        "text_projection.weight": state["text_projection"].T,
        "vision_model.embeddings.class_embedding": state["visual.class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": state["visual.conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": state["visual.positional_embedding"],
        "text_model.embeddings.token_embedding.weight": state["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": state["positional_embedding"],
    }
    norms = {
        "visual.ln_pre": "vision_model.pre_layrnorm",
        "visual.ln_post": "vision_model.post_layernorm",
        "ln_final": "text_model.final_layer_norm",
    }
    for side, prefix in (("vision_model", "visual."), ("text_model", "")):
        for number in range(LAYERS):
            old = f"{prefix}transformer.resblocks.{number}"
            new = f"{side}.encoder.layers.{number}"
            norms |= {
                f"{old}.ln_1": f"{new}.layer_norm1",
                f"{old}.ln_2": f"{new}.layer_norm2",
                f"{old}.mlp.c_fc": f"{new}.mlp.fc1",
                f"{old}.mlp.c_proj": f"{new}.mlp.fc2",
                f"{old}.attn.out_proj": f"{new}.self_attn.out_proj",
            }
            for part in ("weight", "bias"):
                thirds = state[f"{old}.attn.in_proj_{part}"].chunk(3)
                for letter, third in zip("qkv", thirds, strict=True):
                    renamed[f"{new}.self_attn.{letter}_proj.{part}"] = third
    for old, new in norms.items():
        for part in ("weight", "bias"):
            renamed[f"{new}.{part}"] = state[f"{old}.{part}"]
    return renamed


def hugging_face_twin(twin: nn.Module, **settings: Any) -> nn.Module:
    model = transformers.CLIPModel(configuration(**settings)).double().eval()
    model.load_state_dict(translated(twin.state_dict()))
    return model


def assert_equal_but_rounding(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype == torch.float64
    assert (found - expected).abs().max() <= 1e-10 * expected.abs().max()


@torch.no_grad()
@pytest.mark.parametrize(
    ("activation", "height", "width"),
    [
        ("quick_gelu", 48, 48),  # The trained size.
        ("gelu", 80, 32),  # An oblong grid of 5 × 2.
        ("quick_gelu", 70, 60),  # 4 × 3 with a remainder.
    ],
)
def test_every_step_equals_open_clips(activation: str, height: int, width: int, seed: int) -> None:
    torch.manual_seed(seed)
    twin = open_clip_twin(quick_gelu=activation == "quick_gelu")
    ours = adapt(hugging_face_twin(twin, activation=activation))
    theirs = adapt(twin)
    pixels = torch.randn(2, 3, height, width, dtype=torch.float64)
    grid = ours.grid(height, width)
    assert grid == theirs.grid(height, width)
    found, expected = ours.embed(pixels), theirs.embed(pixels)
    assert_equal_but_rounding(found, expected)
    for block, other in zip(ours.blocks, theirs.blocks, strict=True):
        projected = ours.project_qkv(block, ours.norm(block, found), grid)
        reference = theirs.project_qkv(other, theirs.norm(other, expected), grid)
        for part, same in zip(projected, reference, strict=True):
            assert_equal_but_rounding(part, same)
        found = found + ours.project_out(block, attend(*projected))
        expected = expected + theirs.project_out(other, attend(*reference))
        assert_equal_but_rounding(found, expected)
        found, expected = ours.feed_forward(block, found), theirs.feed_forward(other, expected)
        assert_equal_but_rounding(found, expected)
    assert_equal_but_rounding(ours.head(found), theirs.head(expected))


@torch.no_grad()
def test_cls_is_the_models_image_embedding(seed: int) -> None:
    torch.manual_seed(seed)
    model = hugging_face_twin(open_clip_twin())
    pixels = torch.randn(2, 3, 48, 48, dtype=torch.float64)
    tower = adapt(model)
    expected = pooled(model.get_image_features(pixel_values=pixels))
    assert_equal_but_rounding(tower.head(run_blocks(tower, pixels))[:, 0], expected)
    assert_equal_but_rounding(HuggingFaceClip(model).encode_image(pixels), expected)


@torch.no_grad()
def test_the_projected_image_tower_alone_is_enough(seed: int) -> None:
    torch.manual_seed(seed)
    model = transformers.CLIPVisionModelWithProjection(configuration().vision_config).double()
    pixels = torch.randn(2, 3, 48, 48, dtype=torch.float64)
    tower = adapt(model)
    expected = model(pixel_values=pixels).image_embeds
    assert_equal_but_rounding(tower.head(run_blocks(tower, pixels))[:, 0], expected)
    assert (tower.depth, tower.heads, tower.width, tower.output_dim) == (LAYERS, 2, WIDTH, EMBED)
    assert (tower.patch_size, tower.trained_grid) == ((16, 16), (3, 3))
    assert tower.has_cls


@torch.no_grad()
@pytest.mark.parametrize("eos_token_id", (63, 2))
def test_text_is_read_at_its_end_as_open_clip_does(eos_token_id: int, seed: int) -> None:
    """By its id, and by the largest id where an old configuration says 2 (which is a word in the middle here).

    In float32, since transformers 4 cannot mask text in float64.
    """
    torch.manual_seed(seed)
    twin = open_clip_twin()
    clip = HuggingFaceClip(hugging_face_twin(twin, eos_token_id=eos_token_id)).float()
    twin.float()
    tokens = torch.randint(1, 60, (3, CONTEXT))
    tokens[:, 1] = 2
    for row, end in enumerate((4, 9, CONTEXT - 1)):
        tokens[row, end] = 63
    padded = tokens.clone()  # open_clip pads with 0, transformers with the end of text itself.
    for row, end in enumerate((4, 9, CONTEXT - 1)):
        tokens[row, end + 1 :] = 0
        padded[row, end + 1 :] = 63
    torch.testing.assert_close(clip.encode_text(padded), twin.encode_text(tokens))


def test_pooled_takes_a_tensor_and_an_output() -> None:
    """transformers 4 returns the one, 5 the other."""
    embedding = torch.randn(2, 3)
    output = transformers.modeling_outputs.BaseModelOutputWithPooling(pooler_output=embedding)
    assert pooled(embedding) is pooled(output) is embedding


def test_other_models_of_the_library_are_refused() -> None:
    config = transformers.ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    with pytest.raises(TypeError, match=r"got ViTModel of transformers: .*'ViT-B-16'"):
        adapt(transformers.ViTModel(config))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What save_pretrained writes: a model, a tokenizer of seven words, an image processor."""
    model = transformers.CLIPModel(configuration(eos_token_id=1))
    model.save_pretrained(tmp_path)
    word_tokenizer(tmp_path)
    processor = transformers.CLIPImageProcessor(
        image_mean=[0.1, 0.2, 0.3], image_std=[1.0, 2.0, 3.0]
    )
    processor.save_pretrained(tmp_path)
    return tmp_path


def word_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 0), ("<eos>", 1)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<eos>"
    ).save_pretrained(folder)


def test_a_folder_is_loaded(folder: Path) -> None:
    loaded = load_model(f"transformers:{folder}", device=CPU)
    assert (loaded.mean, loaded.std) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    assert adapt(loaded.model) is loaded.visual
    assert not loaded.model.training
    tokens = loaded.tokenizer(["a photo of cat", "dog", "a " * 40])
    assert tokens.shape == (3, CONTEXT)
    assert tokens[0].tolist() == [0, 2, 3, 4, 5, *[1] * 11]
    assert tokens[2].tolist() == [0, *[2] * 14, 1]
    with torch.no_grad():
        assert loaded.model.encode_text(tokens).shape == (3, EMBED)
        alone = loaded.model.encode_text(loaded.tokenizer(["dog"]))
        torch.testing.assert_close(alone[0], loaded.model.encode_text(tokens)[1])
    stored = transformers.CLIPModel.from_pretrained(folder)
    assert torch.equal(
        loaded.visual.visual.visual_projection.weight, stored.visual_projection.weight
    )


def test_a_folder_without_an_image_processor_has_openais_statistics(folder: Path) -> None:
    for path in folder.glob("*processor_config.json"):
        path.unlink()
    loaded = load_model(f"transformers:{folder}", device=CPU, dtype=torch.bfloat16)
    assert loaded.mean == tuple(open_clip.OPENAI_DATASET_MEAN)
    assert loaded.std == tuple(open_clip.OPENAI_DATASET_STD)
    assert loaded.visual.dtype is torch.bfloat16


def edit_config(folder: Path, change: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def test_the_old_end_of_text_is_accepted(folder: Path) -> None:
    edit_config(folder, lambda config: config["text_config"].update(eos_token_id=2))
    assert load_model(f"transformers:{folder}", device=CPU).visual.depth == LAYERS


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        # transformers would take the first token's embedding, without a word.
        (
            lambda config: config["text_config"].update(eos_token_id=5),
            WeightsUnavailable,
            r"with id 1, .* at id 5: correct eos_token_id",
        ),
        # transformers would fill them with noise and warn.
        (
            lambda config: config["vision_config"].update(num_hidden_layers=3),
            WeightsUnavailable,
            r"16 weights are missing, .*layers\.2",
        ),
        (
            lambda config: config["vision_config"].update(image_size=64),
            WeightsUnavailable,
            "must hold what save_pretrained writes",
        ),
        (
            lambda config: config.update(model_type="siglip"),
            TypeError,
            "of type 'siglip'; .* 'ViT-B-16-SigLIP2'",
        ),
    ],
    ids=["end of text", "missing weights", "shapes", "another kind"],
)
def test_folders_that_do_not_fit_together_are_refused(
    folder: Path, change: Any, error: type[Exception], message: str
) -> None:
    edit_config(folder, change)
    with pytest.raises(error, match=message):
        load_model(f"transformers:{folder}", device=CPU)


def test_a_pickle_with_code_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Where the configuration names a dtype, transformers 5 refuses such a file of its own accord.
    edit_config(folder, lambda config: config.pop("dtype", None))
    (folder / "model.safetensors").unlink()
    torch.save({"logit_scale": Payload()}, folder / "pytorch_model.bin")
    with pytest.raises(WeightsUnavailable, match="must hold what save_pretrained writes"):
        load_model(f"transformers:{folder}", device=CPU)
    assert "ran" not in capsys.readouterr().out


def test_a_repository_that_cannot_be_reached_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsUnavailable, match="check the name and the network") as caught:
        load_model("transformers:nobody/nothing", device=CPU)
    assert "'transformers:nobody/nothing'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_weights_come_with_the_name() -> None:
    with pytest.raises(ValueError, match="comes with its weights; leave out pretrained"):
        load_model("transformers:openai/clip-vit-base-patch16", "openai", device=CPU)


@pytest.mark.parametrize(
    ("name", "pretrained"),
    [("transformers:openai/clip-vit-base-patch16", None), ("ViT-B-16-SigLIP", "webli")],
)
def test_without_transformers_the_extra_is_named(
    name: str, pretrained: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SigLIP's tokenizer is one of the library's."""
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r'needs transformers: pip install "resclip\[hf\]"'):
        load_model(name, pretrained, device=CPU)


def test_code_in_a_folder_is_refused_without_a_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(_: str = "") -> str:
        raise AssertionError("a question on stdin")

    monkeypatch.setattr("builtins.input", ask)
    (tmp_path / "code.py").write_text("raise SystemExit('code of a folder ran')")
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "other", "auto_map": {"AutoConfig": "code.Config"}})
    )
    with pytest.raises(WeightsUnavailable, match="contains custom code"):
        load_clip(str(tmp_path))
    text = {"hf_tokenizer_name": str(tmp_path), "context_length": 16}
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": ["code.Tokenizer", None]}})
    )
    for trusted, said in (
        ({}, "tokenizer of 'local-dir:"),
        ({"trust_remote_code": True}, "refused"),
    ):
        model = {
            "embed_dim": 8,
            "vision_cfg": {},
            "text_cfg": {**text, "tokenizer_kwargs": trusted},
        }
        (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": model}))
        with pytest.raises(WeightsUnavailable, match=said):
            load_model(f"local-dir:{tmp_path}", device=torch.device("cpu"))

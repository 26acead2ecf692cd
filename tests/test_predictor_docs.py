"""What docs/predictors.md shows works as it stands; only authors' models are stand-ins."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from resclip.evaluation.published import TABLE, published
from resclip.predictors import PredictorSegmenter
from resclip.predictors.groupvit import GroupViT

PAGE = (Path(__file__).parents[1] / "docs/predictors.md").read_text(encoding="utf-8")
CLASSES = ["background: sky, wall", "cat", "dog", "tree"]


def run_blocks() -> dict[str, Any]:
    """What all Python blocks define, in order."""
    names: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL):
        exec(compile(block, "docs/predictors.md", "exec"), names)
    return names


@pytest.fixture
def namespace() -> dict[str, Any]:
    return run_blocks()


class AuthorsModel:
    """Random features of the widths that the examples expect."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def draw(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def encode_text(self, prompts: list[str]) -> Tensor:
        assert all("{}" not in prompt for prompt in prompts)
        return self.draw(len(prompts), 6)

    def encode_image(self, pixels: Tensor) -> Any:
        count, patches = len(pixels), (pixels.shape[2] // 16) * (pixels.shape[3] // 16)
        soft = [self.draw(count, 8, patches).softmax(dim=1), self.draw(count, 3, 8).softmax(dim=1)]
        return soft, self.draw(count, 3, 6), self.draw(count, 6), 40.0

    def masks(self, pixels: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        assert pixels.shape[2] % 16 == pixels.shape[3] % 16 == 0
        return self.draw(len(pixels), len(text), 8, 8).sigmoid(), self.draw(
            len(pixels), len(text), 4, 4
        )


def test_the_example_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    """The page's own evaluation, and a patch of one of its colours."""
    namespace = run_blocks()
    assert re.fullmatch(r"\d+\.\d\n", capsys.readouterr().out)
    assert namespace["report"].datasets["builtin"].rows["nearest"].images == 4
    pixels = torch.tensor(namespace["COLOURS"]["grass"]).view(3, 1, 1).expand(3, 20, 30)
    segmenter = PredictorSegmenter(namespace["NearestColour"](), ["sky", "grass", "tree"])
    ((labels, _),) = segmenter.predict_many([pixels], [(20, 30)])
    assert (labels == 1).all()


@pytest.mark.parametrize("name", ["GroupModel", "Tcl"])
def test_the_adapters_run(namespace: dict[str, Any], name: str) -> None:
    predictor = namespace[name](AuthorsModel())
    segmenter = PredictorSegmenter(predictor, CLASSES)
    ((labels, _),) = segmenter.predict_many([torch.zeros(3, 448, 460)], [(50, 60)])
    assert labels.shape == (50, 60)
    assert set(labels.unique().tolist()) <= set(range(4))
    assert segmenter.background == ("own" if name == "GroupModel" else 0.4)


def test_the_adapter_of_tcl_finds_its_figures(namespace: dict[str, Any]) -> None:
    segmenter = PredictorSegmenter(namespace["Tcl"](AuthorsModel()), CLASSES)
    found = published("mine:make", "voc21", "", None, segmenter.settings)
    assert found is not None
    assert found.miou == 51.2
    plain = PredictorSegmenter(namespace["Tcl"](AuthorsModel()), CLASSES, window=224)
    assert published("mine:make", "voc21", "", None, plain.settings) is None


def test_the_published_table_is_that_of_the_file() -> None:
    with TABLE.open(encoding="utf-8", newline="") as stream:
        lines = {line["method"]: line for line in csv.DictReader(stream)}
    for name, method in (("groupvit", "GroupViT (SCLIP paper)"), ("tcl", "TCL (SCLIP paper)")):
        (row,) = re.findall(rf"^\| `{name}` \|.*$", PAGE, re.MULTILINE)
        cells = [cell.strip() for cell in row.strip("|").split("|")][1:]
        line = lines[method]
        assert cells == [value for key, value in line.items() if key not in ("method", "source")]


def test_the_thresholds_that_the_page_states() -> None:
    from resclip.predictors.groupvit import THRESHOLDS

    assert "0.95 on VOC21 and COCO-Object, 0.35 on Context60" in PAGE
    assert dict(THRESHOLDS) == {"voc21": 0.95, "coco-object": 0.95, "context60": 0.35}
    assert GroupViT.name in PAGE

"""What the documentation shows works as it stands: Python examples, and commands.

Only what cannot be had in a test is replaced: a model that would be downloaded, by the built-in one. Commands that need
datasets, URLs or hours are read by the real parser, and not run.
"""

from __future__ import annotations

import importlib.metadata
import re
import shlex
import shutil
import subprocess
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from cli_support import run
from PIL import Image

import resclip.models.loading
from resclip.builtin import load_builtin
from resclip.cli.commands import build_parser
from resclip.io.video import VideoWriter
from resclip.segmenter import Segmenter

ROOT = Path(__file__).parents[1]
PAGES = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
)
# What a command does is the same with less of it.
SMALLER = {"evaluate": ["--scenes", "2", "--method", "clip"], "ablate": ["--scenes", "1"]}
# A download, a dataset, a storage service or a cluster is at the other end; to export takes most of a minute.
ELSEWHERE = re.compile(
    r"resclip export|/data/|s3://|--engine ray|\$METHODS|shards/|large\.jpg|list\.txt|--root mine"
)


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def block_with(word: str) -> str:
    """The first Python block of the README with this word."""
    return next(block for block in blocks("README.md", "python") if word in block)


def commands() -> list[str]:
    """Every documented `resclip ...`, once; continued lines are one."""
    found = [
        " ".join(shlex.split(line, comments=True, posix=False))
        for page in PAGES
        for block in blocks(page, "sh")
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith("resclip ")
    ]
    return list(dict.fromkeys(found))


def words_of(command: str) -> list[str]:
    """As a shell splits it, names of files filled in."""
    words = shlex.split(command)[1:]
    if "*.jpg" in words:
        at = words.index("*.jpg")
        words[at : at + 1] = [path.name for path in sorted(Path().glob("*.jpg"))]
    return words


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that examples name; models that would be downloaded are the built-in one."""
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs/scene.png", tmp_path / "docs")
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    for name in ("one.jpg", "two.png", "photos/three.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    Image.fromarray(pixels).save(tmp_path / "map.tif")
    (tmp_path / "rows.csv").write_text("id,photo,path\n1,one.jpg,two.png\n")
    make_video(tmp_path / "clip.mp4", pixels)
    monkeypatch.chdir(tmp_path)
    load_model = resclip.models.loading.load_model

    def from_the_package(name: str, pretrained: str | None = None, **options: Any) -> Any:
        return load_model("builtin", None, **options)

    monkeypatch.setattr("resclip.loading.load_model", from_the_package)
    # A third of the default size, and 1 of 80 prompts a name: 150 classes of synonyms have 15,000.
    monkeypatch.setitem(Segmenter.__init__.__kwdefaults__, "short_side", 112)
    monkeypatch.setattr(
        open_clip, "OPENAI_IMAGENET_TEMPLATES", open_clip.OPENAI_IMAGENET_TEMPLATES[:1]
    )
    return tmp_path


def make_video(path: Path, pixels: np.ndarray) -> None:
    """Three seconds of a picture."""
    writer = VideoWriter(path, Fraction(2))
    for _ in range(6):
        writer.add(pixels)
    writer.close()


def run_examples(page: str, workspace: Path) -> dict[str, Any]:
    """Run the Python blocks of a page in order, with what examples have at hand; returns all that they define."""
    model, *_ = load_builtin()
    namespace: dict[str, Any] = {
        "paths": [workspace / "one.jpg", workspace / "two.png"],
        "clip_model": model,
        "torch": torch,
        "pixels": torch.zeros(1, 3, 112, 112),
        "text": torch.nn.functional.normalize(torch.randn(4, 128), dim=1),
    }
    for example in blocks(page, "python"):
        exec(compile(example, page, "exec"), namespace)
    return namespace


OTHER_PAGES = [
    page for page in PAGES[1:] if page != "docs/results.md" and blocks(page, "python")
]  # fmt: skip


@pytest.mark.parametrize("page", OTHER_PAGES, ids=lambda page: Path(page).stem)
def test_python_examples_of_every_page_run(workspace: Path, page: str) -> None:
    run_examples(page, workspace)


def test_python_examples_of_the_readme_run(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    namespace = run_examples("README.md", workspace)
    printed = capsys.readouterr().out
    assert re.search(r"^sky +\d+\.\d%$", printed, re.MULTILINE)
    assert sorted(path.name for path in (workspace / "out").iterdir()) == [
        "overlay.png", "scene.json", "scene_labels.png", "scene_overlay.png",
    ]  # fmt: skip
    assert namespace["patches"].shape == namespace["features"].patches.shape


def test_the_page_about_results_runs(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    namespace = run_examples("docs/results.md", workspace)
    printed = capsys.readouterr().out
    assert printed.startswith("Segmentation(")
    assert re.search(r"^sky \d+ Box\(x=0, y=0,", printed, re.MULTILINE)
    assert (workspace / "sheet.png").exists()
    assert len(namespace["table"]) == 5
    assert len(namespace["detections"]) == len(namespace["boxes"])


def test_the_drop_in_prints_what_the_readme_says(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    said = re.search(r"<!-- drop-in -->.*?```text\n(.*?)```", text, re.DOTALL)
    assert said is not None
    exec(compile(block_with("ResidualBlock"), "README.md", "exec"), {})
    came = capsys.readouterr().out
    # A patch on the rim of two things may round to the other one on another machine.
    assert len(came) == len(said[1])
    assert sum(one != two for one, two in zip(came, said[1], strict=True)) <= 4


def test_the_quick_start_prints_what_the_readme_says(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    said = re.search(r"<!-- quick start -->\s*prints\s*```text\n(.*?)```", text, re.DOTALL)
    assert said is not None
    exec(compile(block_with("areas()"), "README.md", "exec"), {})
    came = dict(re.findall(r"(\w+) +([\d.]+)%", capsys.readouterr().out))
    expected = dict(re.findall(r"(\w+) +([\d.]+)%", said[1]))
    assert came.keys() == expected.keys()
    # Another processor rounds differently, and a few pixels on borders follow.
    assert all(abs(float(came[name]) - float(expected[name])) <= 0.2 for name in expected)


@pytest.mark.parametrize("command", [one for one in commands() if not ELSEWHERE.search(one)])
def test_commands(workspace: Path, command: str) -> None:
    words = words_of(command)
    assert run(*words, *SMALLER.get(words[0], []), model=None) == 0


def test_commands_with_data_from_elsewhere_are_understood() -> None:
    elsewhere = [command for command in commands() if ELSEWHERE.search(command)]
    assert elsewhere
    for command in elsewhere:
        words = [word for word in shlex.split(command)[1:] if word != "$METHODS"]
        assert build_parser().parse_args(words).command, command


@pytest.mark.parametrize("page", PAGES)
def test_shell_blocks_are_shell_and_none_is_missed(page: str) -> None:
    """A block that stands further in, as in a list, would be neither run nor read."""
    text = (ROOT / page).read_text(encoding="utf-8")
    assert not re.search(r"^[ >]+```(python|py|sh|bash|shell|console)\b", text, re.MULTILINE)
    assert not re.search(r"^```(py|bash|shell|console)$", text, re.MULTILINE)
    subprocess.run(["bash", "-n"], input="".join(blocks(page, "sh")), text=True, check=True)


def test_make_targets_are_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        target
        for page in PAGES
        for target in re.findall(r"(?:^|`)make ([a-z-]+)", (ROOT / page).read_text(), re.MULTILINE)
    }
    assert named
    assert named <= targets


def test_extras_are_there() -> None:
    extras = set(importlib.metadata.metadata("resclip").get_all("Provides-Extra") or [])
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        assert set(re.findall(r"resclip\[(\w+)\]", text)) <= extras, page

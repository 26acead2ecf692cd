"""Prompt templates: the named sets, and one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import pytest

from resclip.text.templates import TEMPLATE_SETS, find_templates


def test_the_named_sets() -> None:
    """CLIP's two as open_clip has them; "short" is written out, so that naming it need not import open_clip."""
    sets = {name: find_templates(name) for name in TEMPLATE_SETS}
    every = tuple(template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES)
    few = {template("{}") for template in open_clip.SIMPLE_IMAGENET_TEMPLATES}
    assert list(sets) == ["imagenet", "short", "plain", "name"]
    assert find_templates() == sets["imagenet"] == every
    assert set(sets["short"]) == few
    assert (sets["plain"], sets["name"]) == (("a photo of a {}.",), ("{}",))


def test_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    path.write_text("\ufeffa photo of a {}.\r\n\n  {} von oben\n", encoding="utf-8")
    wanted = ("a photo of a {}.", "{} von oben")
    assert find_templates(path) == find_templates(str(path)) == wanted
    assert find_templates(list(wanted)) == find_templates(wanted) == wanted
    assert find_templates("{} von oben") == wanted[1:]


def test_a_sets_name_is_never_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("plain").write_text("my {}")
    assert find_templates("plain") == ("a photo of a {}.",)
    assert find_templates("./plain") == find_templates(Path("plain")) == ("my {}",)


@pytest.mark.parametrize(
    ("templates", "message"),
    [
        ("imagnet", "'imagnet'.*imagenet, short, plain, name"),
        ("a" * 5000, "unknown templates"),  # Longer than a path may be.
        ("a\0", "unknown templates"),
        ([], "at least one"),
        (["{}", "a photo"], "'a photo' has no '{}'"),
        (["{}", 7], "to be text, got 7"),
    ],
)
def test_wrong_templates(templates: Any, message: str) -> None:
    error = TypeError if templates[-1:] == [7] else ValueError
    with pytest.raises(error, match=message):
        find_templates(templates)


def test_wrong_files(tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    path.write_text("{}\n\na photo")
    with pytest.raises(ValueError, match="own.txt, line 3: .*'a photo'"):
        find_templates(path)
    path.write_text(" \n")
    with pytest.raises(ValueError, match="own.txt: .*empty file"):
        find_templates(path)
    path.write_bytes(b"{}\xff")
    with pytest.raises(ValueError, match="own.txt: .*UTF-8.* position 2"):
        find_templates(path)
    with pytest.raises(FileNotFoundError, match="absent"):
        find_templates(tmp_path / "absent")

"""Prompt templates: the named sets, and one's own."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest

from resclip.text.templates import TEMPLATE_SETS, find_templates


def test_the_named_sets() -> None:
    assert {name: len(find_templates(name)) for name in TEMPLATE_SETS} == {
        "imagenet": 80,
        "short": 7,
        "plain": 1,
        "name": 1,
    }
    for name in TEMPLATE_SETS:
        assert all(template.count("{}") == 1 for template in find_templates(name))
    assert find_templates("plain") == ("a photo of a {}.",)
    assert find_templates("name") == ("{}",)


def test_clips_own_sets_are_as_published() -> None:
    """open_clip carries both; "short" is written out here, so that naming it need not import open_clip."""
    every = tuple(template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES)
    few = {template("{}") for template in open_clip.SIMPLE_IMAGENET_TEMPLATES}
    assert find_templates() == find_templates("imagenet") == every
    assert set(find_templates("short")) == few
    assert few < set(every)


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
        ("", "unknown templates ''"),
        ("a" * 5000, "unknown templates"),  # Longer than a path may be.
        ("a\0", "unknown templates"),
        ([], "at least one"),
        (["{}", "a photo"], "'a photo' has no '{}'"),
    ],
)
def test_wrong_templates(templates, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_templates(templates)


def test_templates_that_are_no_text() -> None:
    with pytest.raises(TypeError, match="to be text, got 7"):
        find_templates(["{}", 7])


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

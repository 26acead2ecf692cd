"""Lines of text in pictures: fonts by letter, what is said where none has one, and how lines are shortened."""

from __future__ import annotations

import subprocess
import unicodedata
import warnings
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resclip.errors import MissingLettersWarning
from resclip.visualization import fonts
from resclip.visualization.fonts import built_in_font, fit_line, fit_lines, set_line


@pytest.fixture(autouse=True)
def nothing_said_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "_SAID", set())
    fonts._runs.cache_clear()


@pytest.fixture
def no_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "_system_fonts", lambda _: ())


def drawn(line: fonts.Line) -> np.ndarray:
    canvas = Image.new("RGB", (400, 40), "white")
    line.draw(canvas, (0, 20), (0, 0, 0))
    return np.asarray(canvas)


def test_latin_needs_no_other_font(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "_system_fonts", pytest.fail)
    line = set_line("sky,\n 2 trees & a car", 16)
    assert line.runs == (("sky, 2 trees & a car", built_in_font(16)),)
    assert (drawn(line) < 255).any()


def test_without_a_font_it_is_said_once_and_the_class_s_number_is_drawn(no_fonts: None) -> None:
    with pytest.warns(MissingLettersWarning, match=r"CJK \(猫 犬\).*fonts-noto-cjk"):
        assert set_line("猫犬", 16, "class 3").text == "class 3"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert set_line("猫", 16, "class 4").text == "class 4"
        assert set_line("a cat, 猫", 16).text == "a cat, ?"
    with pytest.warns(MissingLettersWarning, match="DEVANAGARI.*fonts-noto-core"):
        set_line("बिल्ली", 16, "class 5")


def test_accents_go_before_the_name_does(no_fonts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    has = fonts._has_letter
    monkeypatch.setattr(
        fonts, "_has_letter", lambda font, letter: letter != "é" and has(font, letter)
    )
    with pytest.warns(MissingLettersWarning, match=r"LATIN \(é\)"):
        assert set_line("café", 16, "class 0").text == "cafe"


@pytest.mark.parametrize("name", ["\u200b", "\x00\x01", " ", "\ud800"])
def test_a_name_that_shows_nothing_is_a_number(name: str) -> None:
    assert set_line(name, 16, "class 7").text == "class 7"


def test_letters_of_two_fonts_stand_beside_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if one font had Latin letters alone, and the other one what is beyond."""
    latin, other = built_in_font(16), built_in_font(17)
    monkeypatch.setattr(fonts, "_system_fonts", lambda letters: [("other", 0)])
    monkeypatch.setattr(fonts, "_load", lambda *_: other)
    monkeypatch.setattr(
        fonts,
        "_has_letter",
        lambda font, letter: (
            unicodedata.category(letter)[0] in "MZ" or (ord(letter) < 128) == (font is latin)
        ),
    )
    line = set_line("sky 猫犬 tree", 16, "class 0")
    assert [text for text, _ in line.runs] == ["sky ", "猫犬 ", "tree"]
    assert [font for _, font in line.runs] == [latin, other, latin]
    assert line.width == sum(font.getlength(text) for text, font in line.runs)
    # A text whose first letter is Hebrew runs from right to left, and so do its parts.
    assert [text for text, _ in set_line("של sky", 16, "class 0").runs] == ["sky", "של "]


def test_fontconfig_is_asked_for_upright_sans_and_is_not_required(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listed = [
        "/f/SomeSerif.ttf\t0\tSome Serif\tRegular", "/f/SansBold.ttf\t0\tSome Sans\tBold",
        "/f/Sans.ttc\t65538\tSome Sans\tRegular", "/f/Mono.ttf\t0\tMono\tRegular",
    ]  # fmt: skip
    asked = []

    def answer(command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        asked.append(command)
        return subprocess.CompletedProcess(command, 0, "\n".join(listed).encode(), b"")

    monkeypatch.setattr(fonts.subprocess, "run", answer)
    found = fonts._fontconfig.__wrapped__("猫犬")
    assert found[0] == ("/f/Sans.ttc", 2)
    assert found[-1] == ("/f/SansBold.ttf", 0)
    assert "charset=732b 72ac" in asked[0][1]

    def fail(*_: Any, **__: Any) -> None:
        raise FileNotFoundError("fc-list")

    monkeypatch.setattr(fonts.subprocess, "run", fail)
    assert fonts._fontconfig.__wrapped__("猫") == ()


def test_a_script_that_cannot_be_laid_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "_can_shape", lambda: False)
    monkeypatch.setattr(fonts, "_has_letter", lambda *_: True)
    with pytest.warns(MissingLettersWarning, match="no Raqm.*ARABIC.*libfribidi"):
        set_line("قطة", 16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        set_line("чайка", 16)


@pytest.mark.parametrize("width", [40, 100, 200])
def test_a_long_line_keeps_its_start(width: int) -> None:
    for text in ("x" * 3000, "many words " * 50):
        line = fit_line(text, 17, width)
        assert line.width <= width
        assert line.text.endswith("...")
        assert text.startswith(line.text[:-3])
        longer = text[: len(line.text) - 1].strip() + "..."
        assert set_line(longer, 17).width > width


def test_lines_that_would_read_the_same_are_cut_in_the_middle() -> None:
    names = [f"{'a very long name of a thing of kind ' * 3}{letter}" for letter in "AB"]
    lines = fit_lines([*names, "sky"], 17, 200, [""] * 3)
    assert len({line.text for line in lines}) == 3
    assert [line.text[-1] for line in lines[:2]] == ["A", "B"]
    assert all(line.width <= 200 for line in lines)


def test_a_letter_is_not_parted_from_its_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "_has_letter", lambda *_: True)
    text = "e\u0301" * 60
    for width in range(60, 120, 7):
        cut = fit_line(text, 17, width).text.removesuffix("...")
        assert len(cut) % 2 == 0

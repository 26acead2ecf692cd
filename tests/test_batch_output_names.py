"""Names and stems: safe, each its own, and the same in any order."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resclip.batch.output_names import contained_name, portable_stem, unique_names
from resclip.io.files import is_temporary


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sub/cat.jpg", "sub/cat.jpg"),
        ("/../etc/passwd", "etc/passwd"),
        ("a/./b//c/", "a/b/c"),
        ("C:\\images\\..\\cat.jpg", "C/images/cat.jpg"),
        ("a\x00b\n\x7f\x85\ud800.jpg", "a_b____.jpg"),
        (".. /x", "x"),
        ("..", ""),
        ("каф é 猫.jpg", "каф é 猫.jpg"),
    ],
)
def test_contained_names(text: str, expected: str) -> None:
    assert contained_name(text) == expected
    assert contained_name(expected) == expected


@given(st.text(st.one_of(st.sampled_from("./\\:~ a\x00é猫\ud812"), st.characters()), max_size=400))
def test_any_text_becomes_a_name_that_stays_in_its_folder(text: str) -> None:
    name = contained_name(text)
    assert contained_name(name) == name
    assert not name.startswith("/")
    assert all(part not in ("", ".", "..") for part in name.split("/") if name)
    assert all(len(part.encode()) <= 180 for part in name.split("/"))
    assert not any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name)
    assert not re.match("[A-Za-z]:", name)


@pytest.mark.parametrize(
    ("given_names", "stems"),
    [
        (["Cat.jpg", "cat.png"], ["Cat.jpg", "cat.png"]),
        (["a/cat.jpg", "b/cat.jpg"], ["a/cat", "b/cat"]),
        (["cat", "cat.jpg"], ["cat", "cat.jpg"]),  # A stem that is another one's whole name.
        (
            ["\u00c9.jpg", "e\u0301.png"],
            ["\u00c9.jpg", "e\u0301.png"],
        ),  # É in one character, and in two.
        (["v1.2 of a cat", "x.tar"], ["v1.2 of a cat", "x"]),
    ],
)
def test_stems(given_names: list[str], stems: list[str]) -> None:
    assert list(unique_names(given_names, given_names)) == list(
        zip(given_names, stems, strict=True)
    )


def test_names_that_differ_in_case_alone_have_marked_stems() -> None:
    names = ["Cat.jpg", "cat.jpg"]
    (_, first), (_, second) = unique_names(names, names)
    assert re.fullmatch(r"Cat\.jpg~[0-9a-f]{16}", first)
    assert re.fullmatch(r"cat\.jpg~[0-9a-f]{16}", second)
    assert first.lower() != second.lower()


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("2024-01-01T12:30", "2024-01-01T12%3A30"),
        ('what?/<a>|"b"*.png', "what%3F/%3Ca%3E%7C%22b%22%2A"),
        ("dir./x /cat. ", "dir%2E/x%20/cat.%20"),
        ("CON/com1.txt", "%43ON/%63om1"),
        ("sub/Nul .tar.gz", "sub/%4Eul .tar"),
        ("console/computer/manifest.v2/x.jpg", "console/computer/manifest.v2/x"),
        ("100%/a%20b.jpg", "100%/a%20b"),
        # Folders that are the manifest's, or that are files of another image, or that `Store.clean` removes.
        ("manifest.parquet/x", "manifest%2Eparquet/x"),
        ("sub/MANIFEST.lock/x", "sub/MANIFEST%2Elock/x"),
        ("manifest.parts/000000.parquet", "manifest%2Eparts/000000"),
        ("a_labels.png/猫_Overlay.PNG/x", "a_labels%2Epng/猫_Overlay%2EPNG/x"),
        (".resclip-00.tmp/x", ".resclip-00%2Etmp/x"),
        ("manifest.lock", "manifest"),
    ],
)
def test_stems_that_every_system_allows(name: str, stem: str) -> None:
    assert list(unique_names([name], [name])) == [(name, stem)]


def test_names_that_become_the_same_have_marked_stems() -> None:
    names = ["a:b", "a%3ab", ":" * 170 + "/x", ":" * 170 + "/X"]
    stems = [stem for _, stem in unique_names(names, names)]
    assert len({stem.lower() for stem in stems}) == 4
    assert all(re.search("~[0-9a-f]{16}$", stem) for stem in stems)
    assert all(len(part) <= 197 for stem in stems for part in stem.split("/"))


REFUSED = re.compile(
    r'[<>:"\\|?*\x00-\x1f]|[. ](/|$)|(^|/)(con|prn|aux|nul|com\d|lpt\d)(\.[^/]*)?(/|$)'
)
OWN = re.compile(r"(^|/)manifest\.(parquet|lock|parts)/|_(labels|scores|overlay)\.(png|tif)/")
PIECES = [
    "con",
    "COM1",
    ".",
    " ",
    ":",
    "?",
    "%3A",
    "a",
    "é",
    "/",
    "manifest.parquet",
    "_labels.png",
]


@given(st.lists(st.lists(st.sampled_from([*PIECES, ".resclip-a.tmp"]), max_size=6), max_size=9))
def test_no_stem_is_refused_or_taken_or_twice(texts: list[list[str]]) -> None:
    names = [contained_name("".join(text)) or "x" for text in texts]
    stems = [stem for _, stem in unique_names(names, [str(index) for index in range(len(names))])]
    assert len({folded(stem) for stem in stems}) == len(names)
    for stem in [*stems, *map(portable_stem, names)]:
        output = f"{stem}_labels.png"
        assert not REFUSED.search(output.lower())
        assert not OWN.search(output.lower())
        assert not any(map(is_temporary, output.split("/")))


def folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())


@given(st.data())
@settings(max_examples=150)
def test_no_two_items_share_a_name_or_stem_in_any_order(data: st.DataObject) -> None:
    """Of few letters, so that they clash; some already look marked, as an attacker's would."""
    part = st.sampled_from(["a", "A", "a.b", "é", "E\u0301", "a~0123456789abcdef", "ß", "ss"])
    suffix = st.sampled_from(["", ".jpg", ".JPG", ".png", ".b", "~0123456789abcdef"])
    texts = data.draw(st.lists(st.builds(lambda a, b: a + b, part, suffix), max_size=12))
    # What another pair of names is marked with.
    (_, marked), _ = unique_names(["a.jpg", "A.jpg"], ["", ""])
    texts += [marked] * data.draw(st.integers(0, 2))
    order = data.draw(st.permutations(range(len(texts))))
    found = {}
    for numbers in (range(len(texts)), order):
        names = [texts[number] for number in numbers]
        origins = [f"file {number}" for number in numbers]
        for number, pair in zip(numbers, unique_names(names, origins), strict=True):
            assert found.setdefault(number, pair) == pair
    assert len({name for name, _ in found.values()}) == len(texts)
    assert len({folded(stem) for _, stem in found.values()}) == len(texts)

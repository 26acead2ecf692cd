"""Class names as people write them: entries, text, files, datasets and backgrounds."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resclip.errors import ClassNumbersWarning
from resclip.text.class_names import (
    BACKGROUND_LISTS,
    DATASETS,
    ClassEntry,
    background_names,
    check_classes,
    dataset_classes,
    parse_classes,
    parse_entries,
    parse_entry,
    read_classes,
    with_background,
)

# Few letters, so that colons, spaces, commas and equal names meet often; İ casefolds to two letters, é composes.
LETTERS = "ab:# ,;@-'\"{}[]\tAİé\u0301猫\u2028"
NAMES = st.text(LETTERS.replace(",", ""), min_size=1, max_size=6).filter(
    lambda name: name.strip() and not f"{' '.join(name.split())} ".startswith((":", "# "))
)


def names_of(classes: list[str]) -> list[str]:
    return [entry.name for entry in parse_entries(classes)]


@pytest.mark.parametrize(
    ("text", "name", "queries"),
    [
        (" cat ,\tbig   kitten ", "cat", ["cat", "big kitten"]),
        ("background: sky, wall", "background", ["sky", "wall"]),
        ("16:9 screen, tv", "16:9 screen", ["16:9 screen", "tv"]),
        ("film: Star Wars: A New Hope", "film", ["Star Wars: A New Hope"]),
        ("cat, kitten, Cat, puss, KITTEN", "cat", ["cat", "kitten", "puss"]),
    ],
)
def test_entries(text: str, name: str, queries: list[str]) -> None:
    assert parse_entry(text) == ClassEntry(name, tuple(queries))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty name"),
        ("cat, , kitten", "'cat, , kitten'"),
        ("background:", "after the colon, got 'background:'"),
        ("cat, dog: animal", "before the colon, got 'cat, dog: animal'"),
        ("a\udcff", "UTF-8"),
    ],
)
def test_wrong_entries(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_entry(text)


@pytest.mark.parametrize(
    ("name", "queries"),
    [("a", ()), ("a", ("b", " ")), ("", ("b",)), ("a: b", ("b",)), ("a", ("b,c",))],
)
def test_what_no_entry_can_hold(name: str, queries: tuple[str, ...]) -> None:
    """A class made in code is one that could be written."""
    with pytest.raises(ValueError, match="empty name|colon|comma"):
        ClassEntry(name, queries)


@given(NAMES, st.lists(NAMES, min_size=1, max_size=4))
def test_every_class_can_be_written_and_read_again(name: str, queries: list[str]) -> None:
    if ": " in " ".join(name.split()):
        with pytest.raises(ValueError, match="before the colon"):
            ClassEntry(name, tuple(queries))
        return
    entry = ClassEntry(name, tuple(queries))
    assert parse_entry(str(entry)) == entry
    assert check_classes([str(entry)]) == [str(entry)]


@given(st.text(LETTERS, max_size=12))
def test_any_text_is_an_entry_that_is_stable_or_an_error(text: str) -> None:
    try:
        entry = parse_entry(text)
    except ValueError:
        return
    assert parse_entry(str(entry)) == entry
    assert len(set(map(str.casefold, entry.queries))) == len(entry.queries)
    assert set(" ".join(entry.queries).split()) <= set(text.replace(",", " ").split())


@given(st.lists(st.text("abé", min_size=1, max_size=3), min_size=1, max_size=5))
def test_a_list_without_colons_means_what_it_always_meant(queries: list[str]) -> None:
    """The first name names the class and is asked for as well."""
    entry = parse_entry(",".join(queries))
    assert entry.name == queries[0] == entry.queries[0]
    assert ":" not in str(entry)


CAT, DOG = parse_entries(["cat, kitten", "pet: dog"])


@pytest.mark.parametrize(
    ("entries", "error", "message"),
    [
        (["cat", "dog", "Cat"], ValueError, r"'cat' \(class 1\) and 'Cat' \(class 3\)"),
        (["a: feline", "b: Feline"], ValueError, r"\(class 1\) and 'b: Feline' \(class 2\)"),
        ([CAT, DOG, ClassEntry("Cat", ("lynx",))], ValueError, r"'Cat: lynx' \(class 3\)"),
        (["a", "b, , c"], ValueError, "class 2: "),
        ([], ValueError, "at least one"),
        ("cat, dog", TypeError, "'cat, dog'; split it"),
        (["cat", 7], TypeError, "class 2 is 7"),
    ],
)
def test_lists_that_are_refused(entries: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        parse_entries(entries)


def test_classes_that_are_parsed_already_are_taken_as_they_are() -> None:
    assert parse_entries([CAT, DOG]) == [CAT, DOG]
    assert parse_entries(["cat, kitten", DOG]) == [CAT, DOG]


def test_typed_text_is_split_by_semicolons_if_it_has_any() -> None:
    assert parse_classes("  a   b ,c") == ["a b", "c"]
    assert parse_classes("cat,kitten;") == ["cat, kitten"]
    assert parse_classes("cat, Cat; dog") == ["cat", "dog"]  # The same query twice is once.
    assert parse_classes("wall, bed; bed") == ["wall, bed", "bed"]  # Classes may share a query.
    assert parse_classes("background: sky, wall; cat") == ["background: sky, wall", "cat"]
    assert parse_classes("background: sky, cat") == ["background: sky", "cat"]


def test_a_dataset_can_be_typed() -> None:
    assert parse_classes("@voc21") == parse_classes(" @voc21 ") == dataset_classes("voc21")
    with pytest.raises(ValueError, match="'voc99'.*voc20, voc21"):
        parse_classes("@voc99")
    for text in ("cat, @voc21", "cat; @voc21"):
        with pytest.raises(ValueError, match="'@voc21' among other classes"):
            parse_classes(text)


def test_a_datasets_name_is_never_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("@voc20").write_text("@home\ncat")
    assert len(parse_classes("@voc20")) == 20
    assert parse_classes("./@voc20") == parse_classes(Path("@voc20")) == ["@home", "cat"]


def test_a_file_that_is_missing_is_no_class(tmp_path: Path) -> None:
    for name in ("classes.txt", "classes.json", "classes.yml"):
        with pytest.raises(FileNotFoundError, match=name):
            parse_classes(str(tmp_path / name))
    assert parse_classes("readme.txt, licence.txt") == ["readme.txt", "licence.txt"]


WANTED = ["sky", "cat, kitten", "background: sky, wall", "猫"]
LIST = ["sky", ["cat", "kitten"], {"background": ["sky", "wall"]}, "猫"]
OBJECT = {"sky": [], "cat": ["cat", "kitten"], "background": "sky, wall", "猫": None}
YAML_LIST = "- sky\n- [cat, kitten]\n- background: sky, wall  # of VOC\n- 猫\n"
YAML_OBJECT = "sky:\ncat: [cat, kitten]\nbackground: sky, wall\n猫: []\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "sky\n\n cat, kitten\r\nbackground: sky, wall\n猫"),
        ("a.names", "\ufeffsky\ncat, kitten\nbackground: sky, wall\n猫\n"),
        ("a.JSON", json.dumps(LIST)),
        ("a.json", json.dumps(OBJECT, ensure_ascii=False)),
        ("a.yml", YAML_LIST),
        ("a.yaml", YAML_OBJECT),
        ("a.yaml", json.dumps(LIST)),  # JSON is YAML.
    ],
)
def test_every_format_says_the_same(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    assert read_classes(path) == read_classes(str(path)) == parse_classes(str(path)) == WANTED


def test_words_that_yaml_would_take_for_something_else(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("- no\n- 7\n- null\n- 2024-01-01\n- !!python/name:os.system cat\n")
    assert read_classes(path) == ["no", "7", "null", "2024-01-01", "cat"]


@given(st.lists(st.tuples(NAMES, st.lists(NAMES, min_size=1, max_size=3)), min_size=1, max_size=4))
def test_documents_hold_what_text_holds(tmp_path_factory, pairs) -> None:
    """Whatever can be a class is the same class as a line, as a list's item and as an object's key."""
    try:
        classes = [ClassEntry(name, tuple(queries)) for name, queries in pairs]
        wanted = check_classes([str(entry) for entry in classes])
    except ValueError:
        return
    folder = tmp_path_factory.mktemp("documents", numbered=True)
    as_list = [{entry.name: entry.queries} for entry in classes]
    as_object = {entry.name: entry.queries for entry in classes}
    for name, text in {
        "lines.txt": "\n".join(wanted),
        "list.json": json.dumps(as_list),
        "object.json": json.dumps(as_object),
        "entries.yaml": json.dumps(wanted),
    }.items():
        (folder / name).write_text(text, encoding="utf-8")
        assert read_classes(folder / name) == wanted


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "sky\n\ncat, , dog", "line 3: .*'cat, , dog'"),
        ("a.txt", "sky\n\nSky", r"'sky' \(line 1\) and 'Sky' \(line 3\)"),
        ("a.txt", "\n \n", "empty file"),
        ("a.json", "[1", "line 1, column 3: expected JSON"),
        ("a.json", "[]", "at least one class"),
        ("a.json", '["sky", ["a", true]]', "item 2: .*true as name 2"),
        ("a.json", '["sky", [["a"]]]', "item 2: .*a list as name 1"),
        ("a.json", '["sky", []]', "item 2: .*got a list"),
        ("a.json", '{"a": {"b": 1}}', "item 1: .*'a', got an object"),
        ("a.json", '["a\\ud800"]', "item 1: .*UTF-8"),
        ("a.json", '[{"a": ["b"], "c": ["d"]}]', "item 1: .*got 2 keys"),
        ("a.json", '{"a": ["b"], "a": ["c"]}', r"'a: b' \(item 1\) and 'a: c' \(item 2\)"),
        ("a.json", "[" * 50_000, "too deep|expected JSON"),
        ("a.yaml", "", "got null"),
        ("a.yaml", "- sky\n- 'cat\n", "expected YAML.*line"),
        ("a.yaml", "- sky\n- \n", "nothing for item 2"),
        ("a.yaml", "a: b\na: c\n", r"'a: b' \(item 1\) and 'a: c' \(item 2\)"),
        ("a.yaml", "&a [*a]", "item 1: .*got a list"),
        ("a.yaml", "[" * 1_000, "too deep"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_classes(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_files_in_other_encodings_are_refused(tmp_path: Path) -> None:
    for name in ("a.txt", "a.json", "a.yaml"):
        (tmp_path / name).write_bytes("[ü]".encode("latin-1"))
        with pytest.raises(ValueError, match=f"{name}: .*UTF-8.* position 1"):
            read_classes(tmp_path / name)


def test_every_dataset_has_as_many_classes_as_its_name_says() -> None:
    """Those whose name holds no number: from the benchmarks' definitions, with background where there is one."""
    counts = {"coco-object": 81, "coco-stuff": 171, "cityscapes": 19, "ade20k": 150}
    packaged = Path(__file__).parents[1] / "resclip" / "data" / "classnames"
    assert sorted(DATASETS) == sorted(path.stem for path in packaged.iterdir())
    for name in DATASETS:
        wanted = counts[name] if name in counts else int(re.sub(r"\D", "", name))
        assert len(dataset_classes(name)) == wanted
    with pytest.raises(ValueError, match="'voc'.*voc20"):
        dataset_classes("voc")


def test_class_0_is_the_background_where_there_is_one() -> None:
    with_one = {name for name in DATASETS if names_of(dataset_classes(name))[0] == "background"}
    assert with_one == {"voc21", "context60", "coco-object"}
    assert parse_entry(dataset_classes("context60")[0]).queries == ("background",)
    for name in BACKGROUND_LISTS:
        queries = parse_entry(dataset_classes(name)[0]).queries
        assert list(queries) == background_names(name)
        assert {"sky", "wall", "tree"} <= set(queries)
        assert "background" not in queries


def test_a_background_in_front_without_what_classes_ask_for_themselves() -> None:
    classes = with_background(["cat, kitten", "person: man, woman"])
    assert classes[1:] == ["cat, kitten", "person: man, woman"]
    background = parse_entry(classes[0])
    assert background.name == "background"
    assert list(background.queries) == background_names("voc21")
    background = parse_entry(with_background(["Sky", "plant: tree"], "coco-object")[0])
    assert list(background.queries) == [
        name for name in background_names("coco-object") if name not in ("sky", "tree")
    ]


def test_backgrounds_that_are_refused() -> None:
    with pytest.raises(ValueError, match="'ade20k'.*voc21, coco-object"):
        background_names("ade20k")
    with pytest.raises(ValueError, match="'background: sky"):
        with_background(["Background", "cat"])
    with pytest.raises(ValueError, match="leave something to the background"):
        with_background(background_names("voc21"), "voc21")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("id2label.json", '{"1": "tree, oak", "0": "sky", "2": "cat"}'),
        (
            "config.json",
            '{"model_type": "x", "id2label": {"0": "sky", "1": "tree, oak", "2": "cat"}}',
        ),
        ("label2id.json", '{"cat": 2, "sky": 0, "tree, oak": 1}'),
        (
            "categories.json",
            '[{"id": 3, "name": "cat"}, {"id": 1, "name": "sky"}, {"id": 2, "name": "tree, oak"}]',
        ),
        (
            "coco.json",
            '{"categories": [{"id": 0, "name": "sky"}, {"id": 2, "name": "cat"}, {"id": 1, "name": "tree, oak"}]}',
        ),
        ("data.yaml", "path: x\nnames:\n  0: sky\n  1: tree, oak\n  2: cat\n"),
        ("names.yaml", "names:\n  2: cat\n  0: sky\n  1: tree, oak\n"),
        ("inner.json", '{"model_type": "x", "label2id": {"cat": 2, "sky": 0, "tree, oak": 1}}'),
        ("list.yaml", "nc: 3\nnames: [sky, 'tree, oak', cat]\n"),
        ("tabs.txt", "1\ttree, oak\n0\tsky\n2\tcat\n"),
        ("colons.txt", "0: sky\n1: tree, oak\n2: cat\n"),
        ("spaces.txt", "1 sky\n2 tree, oak\n3 cat\n"),
        ("comments.txt", "# of a park\nsky\n\n#\ntree, oak\n# \ncat\n"),
    ],
)
def test_numbered_classes_come_in_their_order(name: str, content: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_classes(path) == ["sky", "tree, oak", "cat"]


@pytest.mark.parametrize(
    ("name", "content", "classes"),
    [
        ("a.txt", "2 dollar bill\n50 cent\n", ["2 dollar bill", "50 cent"]),
        ("a.txt", "#1 fan\n16:9 screen\n", ["#1 fan", "16:9 screen"]),
        ("a.txt", "7: seven\nsky\n", ["7: seven", "sky"]),
        ("a.json", '{"names": ["sky"], "categories": ["cat"]}', ["names: sky", "categories: cat"]),
        ("a.yaml", "7:\nno:\n", ["7", "no"]),
    ],
)
def test_numbers_that_are_names(
    name: str, content: str, classes: list[str], tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_text(content)
    assert read_classes(path) == classes


def test_gaps_between_numbers_are_said_and_repeated_ones_refused(tmp_path: Path) -> None:
    path = tmp_path / "coco.json"
    path.write_text('[{"id": 1, "name": "a"}, {"id": 90, "name": "b"}]')
    with pytest.warns(ClassNumbersWarning, match="2 classes from 1 to 90, with gaps: .* 0 to 1"):
        assert read_classes(path) == ["a", "b"]
    path.write_text('{"0": "a", "1": "b", "0": "c"}')
    with pytest.raises(ValueError, match="number once, got 0 for item 1 and item 3"):
        read_classes(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"0": null, "1": "sky"}', "expected a name or a list of names, got null"),
        ('{"0": "", "1": "sky"}', "got nothing for item 1"),
        (f'{{"sky": {"9" * 5000}}}', "expected JSON, got a number of thousands of digits"),
    ],
)
def test_numbered_classes_without_a_name_are_refused(
    content: str, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "classes.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=said):
        read_classes(path)


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([f"name {number}" for number in range(65_536)], "at most 65,535 classes.* got 65,536"),
        (["x" * 10_000_000], "at most 100,000 characters, got 10,000,000"),
        (["x" * 10_000], "at most 1,000 characters, got 10,000"),
        (["sky", ":tree"], "before the colon, got ':tree'"),
        (["a: " + ",".join(map(str, range(30_000)))], "at most 100,000 characters"),
    ],
)
def test_lists_out_of_reason_are_refused(entries: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        parse_entries(entries)
    assert len(str(caught.value)) < 250


def test_a_file_out_of_reason_is_not_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resclip.io.files.TEXT_BYTES", 1 << 20)
    path = tmp_path / "classes.txt"
    path.write_bytes(b"a\n" * (1 << 20))
    with pytest.raises(ValueError, match="in at most 1 MiB, got a larger file"):
        read_classes(path)


@pytest.mark.parametrize(
    "text", ["id\tname\n0\tsky\n1\ttree\n", "sky\t0\ntree\t1\n", "0\tsky\ntree\n"]
)
def test_columns_that_are_no_numbers_and_names(tmp_path: Path, text: str) -> None:
    path = tmp_path / "classes.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match="a number, a tab and a name in every line"):
        read_classes(path)

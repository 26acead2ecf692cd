"""docs/methods.md names every base and step with its picture and facts, and its figures are the stored ones."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import method_cost, method_facts, method_pictures, readme
from benchmarks.method_cost import Row, growth, peak_of, rows_of
from resclip.methods.catalogue import BASES, PAMR, SUFFIXES
from resclip.methods.pieces import KINDS
from resclip.methods.presets import OWN_SETTINGS
from resclip.methods.steps import STEP_KINDS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/methods.md").read_text(encoding="utf-8")


def test_every_base_and_step_has_a_section_with_its_picture() -> None:
    names = [*BASES, *SUFFIXES, PAMR]
    sections = re.split(r"^###? ", PAGE, flags=re.MULTILINE)[1:]
    by_name = {section.partition("\n")[0]: section for section in sections}
    for name in names:
        assert f"![{name}](methods/{name}.png)" in by_name[name], name
    pictures = {path.stem for path in (ROOT / "docs/methods").iterdir()}
    assert pictures == set(names)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "docs/methods").iterdir()), ids=lambda path: path.stem
)
def test_pictures_are_small_and_whole(path: Path) -> None:
    assert path.stat().st_size <= method_pictures.MOST_BYTES
    with Image.open(path) as image:
        assert image.size == (2 * 224 + 6, 168)


def test_every_piece_step_and_preset_is_named() -> None:
    named = set(re.findall(r"`([\w-]+)", PAGE))
    assert set(KINDS) | set(STEP_KINDS) <= named
    assert {dataset for of_base in OWN_SETTINGS.values() for dataset in of_base} <= {
        name.removeprefix("--preset ") for name in re.findall(r"`((?:--preset )?[\w-]+)`", PAGE)
    }


def test_the_facts_are_those_of_the_stored_results() -> None:
    assert readme.fill(PAGE, "facts", method_facts.facts_table()) == PAGE
    assert set(method_facts.NEEDS) == set(method_pictures.METHODS)


def test_a_python_example_runs() -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    exec(compile(example, "docs/methods.md", "exec"), {})


def test_facts_of_a_run(tmp_path: Path) -> None:
    assert "have not been measured yet" in method_facts.facts_table(tmp_path)
    rows = [Row("pearl", 0.2, 1.1, 1.345), Row("clearclip+tlp", 0.2, 1.0, 1.25)]
    run = method_cost.document(rows, 7)
    (tmp_path / "method-cost.json").write_text(json.dumps(run), encoding="utf-8")
    text = method_facts.facts_table(tmp_path)
    assert "| pearl | 1.10, with its steps 1.34 |" in text.replace("1.35", "1.34")
    assert "| +tlp | 1.25 |" in text
    assert "Median of 7 rounds" in text


def test_rows_compare_within_a_round() -> None:
    """A round twice as slow for all changes no ratio; a goal is judged as it is shown."""
    seconds = {
        "clearclip": [1.0, 2.0, 1.0],
        "pearl": [1.164, 2.328, 1.164],
        "pearl labels": [1.5, 3.0, 1.5],
        "pearl steps": [1.7, 3.4, 1.7],
        "sfp": [1.2, 2.4, 1.2],
    }
    rows = {row.method: row for row in rows_of(seconds)}
    assert rows["pearl"].ratio == pytest.approx(1.164)
    assert rows["pearl"].with_steps == pytest.approx(1.364)
    assert rows["pearl"].reached
    assert not rows["sfp"].reached
    assert rows["clearclip"].with_steps is None
    assert "1.20 NOT" in method_cost.cost_table(list(rows.values()))


@pytest.mark.parametrize("base", ["sfp", "sc-clip"])
def test_no_method_keeps_its_maps(base: str) -> None:
    """Heads' maps of 32 × 32 and 64 × 64 patches would make a patch take several times as much at the second."""
    small, large = (peak_of(base, side) / side**2 for side in (32, 64))
    assert large < 1.3 * small


def test_growth_is_that_of_the_two_largest_sizes() -> None:
    assert growth([7, 64 * 64, 128 * 128]) == 1
    assert growth([7, 64 * 64, 2 * 128 * 128]) == 2

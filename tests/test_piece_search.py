"""`resclip ablate --study pieces`: the search, the half that judges, what is left out, resuming, the command line."""

from __future__ import annotations

import csv
import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_support import names_in, one_line, run
from evaluation_support import CLASSES, Stub, random_dataset, together

from resclip.cli import piece_study
from resclip.cli.commands import build_parser
from resclip.cli.options import load_from, name_weights, window_arguments
from resclip.evaluation.bootstrap import ImageCounts, draws, halves, mious
from resclip.evaluation.datasets import open_dataset
from resclip.evaluation.metrics import scores_of
from resclip.evaluation.studies import piece_search
from resclip.evaluation.studies.piece_search import (
    BASES,
    Composition,
    Measured,
    Recommendation,
    Search,
    figures_of,
    first_stage,
    most_settings,
    recommend,
    variants,
)
from resclip.methods.catalogue import BASES as ALL_BASES
from resclip.methods.composition import compose, parse_changes
from resclip.methods.pieces import Pieces
from resclip.methods.steps import Steps
from resclip.text.class_names import parse_classes

SHARED = {"model": "stub", "precision": "float32"}


@dataclass
class Model(Stub):
    """A stub that labels by its composition too."""

    settings: dict[str, Any] = field(default_factory=dict)
    shift: int = 0

    def predict_many(self, pixels: Any, sizes: Any) -> Any:
        found = super().predict_many(pixels, sizes)
        return [
            ((labels * self.shift + self.shift) % len(CLASSES), other) for labels, other in found
        ]


@dataclass
class Maker:
    """Makes stubs, and notes for which compositions; those that `refuses` says are refused."""

    refuses: Callable[[Composition], bool] = lambda composition: False
    fail_at: int | None = None
    made: list[Composition] = field(default_factory=list)
    models: list[Model] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)

    def __call__(self, composition: Composition) -> Model:
        if self.refuses(composition):
            raise ValueError("these do not go together")
        self.made.append(composition)
        is_last = self.fail_at is not None and len(self.made) > self.fail_at
        # Told apart by what is the same in every process.
        shift = sum(map(ord, composition.name)) % 97
        settings = {**SHARED, "composition": composition.name, **self.options}
        self.models.append(Model(fail_at=0 if is_last else None, settings=settings, shift=shift))
        return self.models[-1]

    @property
    def measured(self) -> int:
        return sum(model.calls > 0 for model in self.models)


def random_measured(name: str, seed: int, images: int) -> Measured:
    generator = np.random.default_rng(seed)
    counts = ImageCounts.empty(3)
    for image in range(images):
        counts.add(image, generator.integers(0, 90, (3, 4)) + 60 * np.eye(3, 4, dtype=np.int64))
    return Measured(Composition(name), counts, (), 0.0)


def test_the_choice_is_made_on_one_half_and_judged_on_the_other() -> None:
    measured = [random_measured(base, seed, 12) for seed, base in enumerate([*ALL_BASES][:8])]
    choosing, judging = halves(12)
    by_name = {found.composition: found.counts for found in measured}
    figures = figures_of(measured, choosing, judging)

    def miou(composition: Composition, images: list[int]) -> float | None:
        return scores_of(by_name[composition].confusion(images)).miou

    best = figures[0].composition
    assert best == max(by_name, key=lambda composition: miou(composition, choosing))
    # Else this could not tell the halves apart.
    assert best != max(by_name, key=lambda composition: miou(composition, judging))
    assert best != max(by_name, key=lambda composition: miou(composition, list(range(12))))
    drawn = draws(len(judging))
    for line in figures:
        assert line.chosen_on == miou(line.composition, choosing)
        assert line.miou == miou(line.composition, judging)
        assert line.low < line.miou < line.high
        if line.composition == best:
            assert line.beaten is None
            continue
        # Both by the same draws; no two of these figures are equal.
        values = (mious(by_name[one].areas(judging), drawn) for one in (best, line.composition))
        assert line.beaten == np.mean(np.greater(*values))


def test_the_notes_state_both_halves_and_who_is_ahead_on_the_other() -> None:
    measured = [random_measured(base, seed, 12) for seed, base in enumerate([*ALL_BASES][:8])]
    choosing, judging = halves(12)
    figures = figures_of(measured, choosing, judging)
    dataset = random_dataset(0, 12)
    found = Recommendation(
        dataset, figures, tuple(choosing), tuple(judging), {}, (), SHARED, "at most 9 settings"
    )
    text = " ".join(found.notes())
    best, top = figures[0], max(figures, key=lambda line: line.miou)
    assert f"mIoU {best.chosen_on:.1f} on the half that it was chosen on" in text
    assert (
        f"{best.miou:.1f} on the other half (95 % interval {best.low:.1f} to {best.high:.1f})"
        in text
    )
    assert f"ahead of the second, {figures[1].composition.name}, in" in text
    assert f"On the other half {top.composition.name} has more, {top.miou:.1f}" in text


def test_every_composition_is_asked_for_by_what_its_base_lacks_or_has() -> None:
    for base in ALL_BASES.values():
        assert Composition.of(base.name).changes() == ((), (), None)
        for composition in variants(Composition.of(base.name, rcs=True)):
            changes = composition.changes()
            try:
                pieces = compose(base.pieces, parse_changes(Pieces, changes.pieces))
            except ValueError:
                assert base.pieces.fusion or base.pieces.path
                continue
            steps = compose(base.steps, parse_changes(Steps, changes.steps))
            assert (pieces.outliers is not None) == composition.outliers
            assert (pieces.aggregation is not None) == composition.aggregation
            assert (steps.laplacian is not None) == (composition.behind == "TLP")
            assert (changes.refine or 0) == (10 if composition.behind == "PAMR" else 0)
            # A part that the base has by itself stays as the base has it.
            assert not composition.outliers or base.pieces.outliers in (None, pieces.outliers)
    asked = Composition("sc-clip", outliers=True, behind="PAMR")
    wanted = {"outliers": "outliers:detector=norm", "refine": "3"}
    assert asked.changes(wanted) == (("outliers:detector=norm", "aggregation:none"), (), 3)


def test_the_pieces_are_tried_on_the_best_bases_or_on_all() -> None:
    dataset, make = random_dataset(0, 9), Maker()
    recommend(Search(dataset, make), BASES[:4], best=2)
    assert len(make.made) == len(set(make.made)) == most_settings(4, 2, full=False)[1]
    stage = first_stage(BASES[:4])
    assert make.made[: len(stage)] == stage
    assert {one.base for one in make.made[len(stage) :]} < set(BASES[:4])
    full = Maker()
    recommend(Search(dataset, full), BASES[:1], full=True)
    assert len(full.made) == most_settings(1, 1, full=True)[1] == 48


def test_what_does_not_go_together_is_left_out_and_named() -> None:
    make = Maker(refuses=lambda composition: composition.sfr or composition.outliers)
    found = recommend(Search(random_dataset(0, 8), make), ("naclip",))
    assert not any(line.composition.sfr or line.composition.outliers for line in found.figures)
    assert len(found.refused) == 2 + 6
    text = " ".join(found.notes())
    assert "Left out: naclip+sfr and 7 more: these do not go together." in text
    with pytest.raises(ValueError, match="these do not go together"):
        recommend(
            Search(random_dataset(0, 8), Maker(refuses=lambda composition: True)), ("naclip",)
        )


def test_an_interrupted_search_goes_on_where_it_stopped(tmp_path: Path) -> None:
    dataset = random_dataset(1, 9, broken=[2])
    whole = recommend(Search(dataset, Maker()), ("naclip", "sclip"), best=1)
    with pytest.raises(KeyboardInterrupt):
        recommend(Search(dataset, Maker(fail_at=6), tmp_path), ("naclip", "sclip"), best=1)
    assert len(names_in(tmp_path)) == 6
    rest = Maker()
    again = recommend(Search(dataset, rest, tmp_path), ("naclip", "sclip"), best=1)
    assert rest.measured == 19 - 6
    assert (again.figures, again.problems) == (whole.figures, whole.problems)
    none = Maker()
    recommend(Search(dataset, none, tmp_path), ("naclip", "sclip"), best=1)
    assert none.measured == 0
    # A damaged file is measured again; under other conditions, or by wish, all are.
    damaged, foreign = (tmp_path / name for name in names_in(tmp_path)[:2])
    damaged.write_text('{"conditions": 3')
    content = json.loads(foreign.read_text())
    foreign.write_text(
        json.dumps({**content, "conditions": {**content["conditions"], "version": 0}})
    )
    for make, fresh, count in (
        (Maker(), False, 2),
        (Maker(options={"window": 8}), False, 19),
        (Maker(), True, 19),
    ):
        recommend(Search(dataset, make, tmp_path, fresh), ("naclip", "sclip"), best=1)
        assert make.measured == count


def test_images_that_cannot_be_read_are_in_no_half() -> None:
    dataset = random_dataset(1, 9, broken=[2, 5])
    found = recommend(Search(dataset, Maker()), ("naclip",))
    assert sorted([*found.choosing, *found.judging]) == [0, 1, 3, 4, 6, 7, 8]
    assert len(found.problems) == 2
    assert "2 images could not be read" in " ".join(found.notes())
    with pytest.raises(ValueError, match="in each half that can be read"):
        recommend(Search(random_dataset(1, 4, broken=[1]), Maker()), ("naclip",))
    with pytest.raises(ValueError, match="at least 4 images of random"):
        recommend(Search(random_dataset(1, 3), Maker()), ("naclip",))


def test_processes_share_the_images_and_agree(tmp_path: Path) -> None:
    # Groups of eight: both processes have some.
    dataset = random_dataset(2, 20)
    alone = recommend(Search(dataset, Maker()), ("naclip",))

    def work() -> tuple[Any, int]:
        make = Maker()
        found = recommend(Search(dataset, make, tmp_path, workers=0), ("naclip",))
        return found.figures, make.measured

    for outcome in together(tmp_path, work):
        assert outcome is not None
        assert outcome.error == ""
        assert outcome.value == (alone.figures, 15)


SMALL = ("ablate", "--study", "pieces", "--size", 48, "--device", "cpu", "--workers", 0)


def test_the_command_line_ends_with_what_runs_the_winner(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Composition("maskclip", outliers=True, behind="TLP")
    monkeypatch.setattr(piece_search, "variants", lambda composition: [composition, other])
    out = tmp_path / "out"
    asked = [*SMALL, "--scenes", 4, "--base", "maskclip", "--best", 1, "--out", out, "--plot"]
    assert run(*asked) == 0
    came = capsys.readouterr()
    assert came.out.startswith("pieces: which composition to take on builtin\n")
    assert "on 4 images" in came.err.splitlines()[0]
    assert "Left out: maskclip+sfr" in came.out
    files = [f"pieces_builtin.{ending}" for ending in ("csv", "json", "md", "png")]
    assert {*files, "pieces_builtin"} <= set(names_in(out))
    stored = json.loads((out / "pieces_builtin.json").read_text())
    with (out / "pieces_builtin.csv").open(newline="", encoding="utf-8") as stream:
        lines = [*csv.DictReader(stream)]
    assert len(lines) == len(stored["details"]["figures"]) == 3
    assert len(names_in(out / "pieces_builtin")) == 3
    assert stored["details"]["command"] in came.out
    assert "nothing of photographs" in came.out.strip().splitlines()[-3]
    assert (out / "pieces_builtin.md").read_text().startswith("| base")
    # What is printed is the same when nothing is measured anew.
    monkeypatch.setattr(piece_search, "evaluate_dataset", None)
    assert run(*asked) == 0
    assert capsys.readouterr().out == came.out


@pytest.mark.parametrize(
    ("composition", "more"),
    [
        (Composition("pearl", rcs=True, behind="PAMR"), "--refine 3 --window 64"),
        (Composition("naclip", sfr=True, outliers=True, behind="TLP"), "--sfr rounds=2 --step laplacian:grid=40"),
        (Composition("sc-clip", aggregation=True), "--piece patches:cls_weight=0.2 --rcs weight=0.3"),
        (Composition("clearclip", rcs=True), "--overview --threshold 0.2 --rcs weight=0.3"),
    ],
)  # fmt: skip
def test_the_printed_command_makes_what_was_measured(composition: Composition, more: str) -> None:
    dataset = open_dataset("builtin", None, None, count=4, size=48)
    parser = build_parser()
    arguments = parser.parse_args([*map(str, SMALL), *more.split()])
    name_weights(arguments)
    made = piece_study.make_segmenter(arguments, dataset, "cpu", set(), composition)
    command = piece_study.command_of(arguments, dataset, composition)
    given = parser.parse_args([*shlex.split(command)[1:], "--device", "cpu"])
    again = load_from(given, parse_classes(given.classes), **window_arguments(given))
    assert again.settings == made.settings
    assert again.vocabulary.names == made.vocabulary.names == dataset.classes
    pixels = torch.tensor(np.array(dataset.samples[0].image.read().pixels))
    labels = [
        segmenter.predict_many([segmenter.preparation.normalise(pixels)], [(48, 48)])[0][0]
        for segmenter in (made, again)
    ]
    assert torch.equal(*labels)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--study", "pieces", "--piece", "outliers:none"], ("outliers", "leave it out")),
        (["--study", "pieces", "--refine", "0"], ("--refine", "leave it out")),
        (["--study", "pieces", "--full", "--best", "2"], ("--full", "--best")),
        (["--study", "modules", "--best", "2"], ("--best", "pieces")),
        (["--study", "pieces", "--base", "naclip,nothing"], ("nothing",)),
        (["--study", "pieces", "--plot"], ("--out",)),
    ],
)
def test_options_that_do_not_fit_are_refused(
    given: list[str], words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("ablate", *given) == 2
    one_line(capsys, *words)

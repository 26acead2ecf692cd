"""The command line: what it writes, what it says, and one line instead of a traceback."""

from __future__ import annotations

import argparse
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cli_support import StandIn, names_in, one_line, run
from PIL import Image

import resclip
from resclip.cli.commands import COMMANDS
from resclip.cli.options import OPTION_OF, explain
from resclip.methods.catalogue import BASES, Overview, ProxyAttention
from resclip.methods.presets import PRESETS
from resclip.models.recommended import RECOMMENDED
from resclip.segmenter import Segmenter

ROOT = Path(resclip.__file__).parents[1]


def test_segment_writes_three_files_and_says_what_it_saw(
    stand_in: StandIn, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "out"
    assert run("segment", image, "--classes", "sky, tree", "--out", out) == 0
    assert names_in(out) == ["cat.json", "cat_labels.png", "cat_overlay.png", "classes.json"]
    came = capsys.readouterr()
    assert came.err == ""
    assert came.out == (
        f"{image}: sky 50%, tree 50% (mean probability 0.50) -> {out / 'cat_overlay.png'}\n"
    )
    assert json.loads((out / "cat.json").read_text())["names"] == ["sky", "tree"]


def test_a_terminal_is_shown_how_far_the_names_are(
    stand_in: StandIn, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert run("segment", image, "--classes", "a", "--out", tmp_path) == 0
    assert stand_in.asked["progress"] is True


def test_options_reach_the_segmenter(stand_in: StandIn, image: Path, tmp_path: Path) -> None:
    options = "--model ViT-B-16 --pretrained openai --method naclip --preset paper --device cpu"
    options += " --precision bf16 --window 336 --stride 56 --batch-size 3 --short-side 448"
    options += " --threshold 0.25 --implementation torch --no-overlay --no-cache"
    options += " --correlation qq,window=7 --rcs layers=3,6-9 --sfr rounds=2 --templates short"
    options += " --overview weight=0.3,side=448 --refine 5"
    options += (
        " --piece outliers:detector=norm --piece stream:none --step laplacian --step area:share=0.2"
    )
    where = ["segment", image, "--classes", "a", "--out", tmp_path / "out"]
    assert run(*where, *options.split()) == 0
    assert stand_in.asked == {
        "progress": False,
        "rcs": {"layers": "3,6-9"},
        "sfr": {"rounds": 2},
        "overview": Overview(weight=0.3, side=448),
        "pieces": {"outliers": {"detector": "norm"}, "stream": None},
        "steps": {"laplacian": True, "area": {"share": 0.2}},
        "refine_iterations": 5,
        "model": "ViT-B-16",
        "pretrained": "openai",
        "classes": ["a"],
        "method": "naclip",
        "preset": "paper",
        "correlation": "qq,window=7",
        "proxy": None,
        "templates": "short",
        "cache": False,
        "background": None,
        "device": "cpu",
        "precision": "bf16",
        "window": 336,
        "stride": 56,
        "batch_size": 3,
        "max_windows": None,
        "short_side": 448,
        "threshold": 0.25,
        "min_margin": None,
        "implementation": "torch",
    }
    assert names_in(tmp_path / "out") == ["cat.json", "cat_labels.png", "classes.json"]


def test_the_proxys_options_and_the_background(stand_in: StandIn, image: Path) -> None:
    where = ["segment", image, "--json", "--classes", "cat"]
    assert run(*where, "--method", "proxyclip", "--proxy", "vit_small_patch16_224.dino") == 0
    assert stand_in.asked["proxy"] == "vit_small_patch16_224.dino"
    assert stand_in.asked["cache"] is True
    assert run(*where, "--proxy", "model=colour,beta=1.1", "--background", "voc21") == 0
    assert stand_in.asked["proxy"] == ProxyAttention("colour", beta=1.1)
    assert stand_in.asked["classes"] == ["cat"]
    assert stand_in.asked["background"] == "voc21"


def test_classes_in_text_and_in_a_file(stand_in: StandIn, image: Path, tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_bytes("\ufeffcat, kitten\r\n\r\n  猫; dog \r\n".encode())
    for text, wanted in (
        ("cat, kitten; dog", ["cat, kitten", "dog"]),
        ("猫, قطة, बिल्ली, 🐈", ["猫", "قطة", "बिल्ली", "🐈"]),
        (path, ["cat, kitten", "猫; dog"]),
    ):
        assert run("segment", image, "--classes", text, "--json") == 0
        assert stand_in.asked["classes"] == wanted


def test_10_000_classes(stand_in: StandIn, image: Path, tmp_path: Path) -> None:
    names = [f"class {index}" for index in range(10_000)]
    path = tmp_path / "classes.txt"
    path.write_text("\n".join(names))
    assert run("segment", image, "--classes", path, "--out", tmp_path / "out") == 0
    assert stand_in.asked["classes"] == names
    assert Image.open(tmp_path / "out" / "cat_labels.png").mode == "I;16"


def test_wrong_classes(image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the text, and in a file, which is named."""
    empty, other = tmp_path / "empty.txt", tmp_path / "other.txt"
    empty.write_text(" \n")
    other.write_bytes(b"sky\n\xff\xfe")
    for classes, words in (
        ("", ["class 1"]),
        ("sky, tree, Sky", ["'sky' (class 1)", "'Sky' (class 3)"]),
        ("a\udcff", ["not valid UTF-8"]),
        (empty, [str(empty), "empty file"]),
        (other, [str(other), "UTF-8", "position 4"]),
    ):
        assert run("segment", image, "--classes", classes, "--out", tmp_path / "out") == 2
        one_line(capsys, *words)
    assert not (tmp_path / "out").exists()


def test_json_on_stdout_is_one_object_an_image(
    stand_in: StandIn, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "missing.png"
    assert run("segment", image, missing, image, "--classes", "猫, b", "--json") == 1
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first == second
    assert first["file"] == str(image)
    assert first["written"] == []
    assert first["classes"][0] == {"index": 0, "name": "猫", "area": 0.5, "score": 0.5}
    assert names_in(tmp_path) == ["cat.png"]
    out = tmp_path / "out"
    assert run("segment", image, "--classes", "a", "--json", "--out", out) == 0
    written = json.loads(capsys.readouterr().out)["written"]
    assert written == [str(out / f"cat{end}") for end in ("_labels.png", "_overlay.png", ".json")]


def test_interrupt(
    stand_in: StandIn, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(_: np.ndarray) -> None:
        raise KeyboardInterrupt

    stand_in.fail = interrupt
    assert run("segment", image, "--classes", "a", "--out", tmp_path / "out") == 130
    one_line(capsys, "interrupted")
    assert names_in(tmp_path / "out") == ["classes.json"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        # Refused by the parser, one per rule of its own.
        (["--threshold", "1.5"], "0 to 1"),
        (["--window", "wide"], "expected a whole number, got 'wide'"),
        (["--max-windows", "1.5"], "whole number of at least 1, got '1.5'"),
        (["--threshold", "high"], "number from 0 to 1, got 'high'"),
        (["--max-pixels", "0"], "at least 1"),
        (["--no-such"], "--no-such"),
        # Refused by the library, whose parameters become options.
        (["--model", "no-such"], "no-such"),
        (["--method", "no-such"], "resclip"),
        (["--preset", "no-such"], "paper"),
        (["--device", "no-such"], "no-such"),
        (["--precision", "fp13"], "fp16"),
        (["--implementation", "no-such"], "torch"),
        (["--window", "5"], "--window must be 0"),
        (["--window", "112", "--stride", "113"], "--stride must lie"),
        (["--batch-size", "0"], "--batch-size"),
        (["--rcs", "layers=1-400"], "got 12, 13, 14, 15, 16, …"),
        (["--short-side", "-1"], "--short-side must be at least 0"),
        (["--method", "maskclip", "--overview"], "use no --overview"),
        (["--method", "naclip", "--correlation", "identity", "--sfr", "rounds=1"], "use no --sfr"),
    ],
)
def test_wrong_options(
    image: Path,
    tmp_path: Path,
    options: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    assert run("segment", image, "--classes", "sky, tree", "--out", out, *options) == 2
    one_line(capsys, words)
    assert not out.exists() or names_in(out) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--help"),
        (["no-such"], "--help"),
        (["segment", "a.png"], "--help"),
        (["segment", "a.png", "--classes", "a"], "got neither"),
    ],
)
def test_incomplete_commands(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    one_line(capsys, words)


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"resclip {resclip.__version__}\n"
    for command in COMMANDS:
        assert run(command, "--help") == 0
        assert f"usage: resclip {command}" in capsys.readouterr().out


def test_lists_of_methods_and_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("methods") == 0
    out = capsys.readouterr().out
    for word in (*BASES, *PRESETS, "CVPR 2025", "WACV"):
        assert word in out
    assert run("models") == 0
    lines = capsys.readouterr().out.splitlines()
    first, *others = lines[
        lines.index("All models (--model), each with its tags (--pretrained)") + 2 :
    ]
    assert first.startswith("builtin ")
    named = dict(line.split(maxsplit=1) for line in others)
    said = "\n".join(lines[: -len(others)])
    for one in RECOMMENDED:
        assert re.search(rf"{one.model} +{one.tag} +{one.gigabytes:.2f} GB", said)
    assert "openai" in named["ViT-B-16"].split(", ")
    assert "RN50" not in named


def python(
    *arguments: object, check: bool = True, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter that finds the package."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=check,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=120,
    )


def test_help_and_wrong_requests_do_not_wait_for_torch() -> None:
    code = (
        "import sys; from resclip.cli.commands import main\n"
        "for arguments in (['--help'], ['segment', 'x.png'],\n"
        "                  ['segment', 'x.png', '--json', '--classes', 'a, a']):\n"
        "    main(arguments)\n"
        "    print([name for name in ('torch', 'open_clip', 'numpy') if name in sys.modules])"
    )
    loaded = [line for line in python("-c", code).stdout.splitlines() if line.startswith("[")]
    assert loaded == ["[]", "[]", "['numpy']"]


def test_what_libraries_warn_of_and_log_stays_out_of_the_way(image: Path) -> None:
    """Unless -W asks for it, as in the second run."""
    code = (
        "import logging, sys, types, warnings\n"
        "from resclip.cli.commands import main\n"
        "from resclip.errors import WeightsUnavailable\n"
        "def load(*_, **__):\n"
        "    warnings.warn('noise')\n"
        "    logging.error('noise')\n"
        "    raise WeightsUnavailable('no network;\\nuse a checkpoint')\n"
        "module = types.ModuleType('resclip.loading'); module.load = load\n"
        "sys.modules['resclip.loading'] = module\n"
        "print(main(sys.argv[1:]))\n"
        "sys.warnoptions.append('default'); warnings.simplefilter('default')\n"
        "print(main(sys.argv[1:]))"
    )
    result = python("-c", code, "segment", image, "--classes", "a", "--json")
    assert result.stdout == "1\n1\n"
    quiet, _, loud = result.stderr.partition("resclip: no network; use a checkpoint\n")
    assert quiet == ""
    assert "UserWarning: noise" in loud
    assert "ERROR:root:noise" in loud
    assert loud.endswith("resclip: no network; use a checkpoint\n")


def test_a_process_says_one_line_and_leaves_with_the_status() -> None:
    asked = ("segment", "x.png", "--classes", "a,a", "--json")
    result = python("-m", "resclip", *asked, check=False)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("resclip: expected each class once")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["models", "--help", "--version"])
def test_a_reader_that_leaves_early_is_no_error(command: str) -> None:
    """What is buffered then is flushed again when the interpreter ends."""
    code = (
        "import sys, resclip.cli.show as show; from resclip.cli import main\n"
        "show.show_models = lambda _: print('few') or 0\n"
        f"sys.exit(main([{command!r}]))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""},
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=120) == 1


def test_a_stream_may_be_closed() -> None:
    """As by `>&-` in a shell: Python then has None in its place."""
    code = (
        "import sys, resclip.cli.show as show; from resclip.cli import main\n"
        "show.show_models = lambda _: print('few') or 0\n"
        "sys.stdout = sys.stderr = None\n"
        "sys.exit(main(['models']))"
    )
    assert python("-c", code, check=False).returncode == 0


@pytest.mark.skipif(sys.platform == "win32", reason="no numbers of streams")
def test_closed_streams_keep_their_numbers(tmp_path: Path) -> None:
    """Else a file that is written would get what libraries print."""
    code = (
        "import os\n"
        "for number in range(3): os.close(number)\n"
        "import sys; sys.stdin = sys.stdout = sys.stderr = None\n"
        "from resclip.cli.commands import open_streams; open_streams()\n"
        f"file = open({str(tmp_path / 'file')!r}, 'w'); assert file.fileno() > 2\n"
        "print('lost'); print('lost', file=sys.stderr); assert sys.stdin.read() == ''"
    )
    assert python("-c", code, check=False).returncode == 0


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (FileNotFoundError(2, "not found", "names.txt"), 2),
        (ImportError("needs pyarrow"), 2),
        (ValueError("wrong"), 2),
        (OSError(28, "No space left on device", "out"), 1),
        (RuntimeError("failed"), 1),
    ],
)
def test_a_wrong_request_and_a_failure_have_their_own_status(
    error: Exception, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> int:
        raise error

    monkeypatch.setattr("resclip.cli.show.show_models", fail)
    assert run("models") == status


def test_parameters_in_errors_become_options() -> None:
    for said, shown in (
        ("take a smaller window= or short_side=", "take a smaller --window or --short-side"),
        ('pass precision="fp16", or overwrite=True', "pass --precision fp16, or --overwrite"),
        ("window must be 0, with rcs=None", "--window must be 0, with no --rcs"),
        ("a larger probability_threshold=; name it", "a larger --threshold; name it"),
        # What a user wrote, or what no option sets, stays as it is.
        ("got 'random,window=3' for correlation", "got 'random,window=3' for correlation"),
        ("weights= and my_window= are no options", "weights= and my_window= are no options"),
        ("unexpected error: sizes differ", "unexpected error: sizes differ (--debug shows where)"),
    ):
        assert explain(said) == explain(ValueError(said)) == shown


def test_every_option_that_an_error_may_name_exists() -> None:
    helps = []
    for command in COMMANDS.values():
        parser = argparse.ArgumentParser()
        command.add_options(parser)
        helps.append(parser.format_help())
    for option in OPTION_OF.values():
        assert any(f"{option} " in text for text in helps), option


def test_help_shows_the_defaults() -> None:
    """Of options that change a result: the segmenter's and each preset's."""
    parser = argparse.ArgumentParser()
    COMMANDS["segment"].add_options(parser)
    helps = {action.dest: str(action.help) for action in parser._actions}
    defaults = inspect.signature(Segmenter).parameters
    for option, parameter in (
        ("window", "window"),
        ("stride", "stride"),
        ("short_side", "short_side"),
        ("threshold", "probability_threshold"),
    ):
        values = {defaults[parameter].default}
        values |= {
            settings.segmenter[parameter]
            for settings in (*PRESETS.values(), *BASES.values())
            if parameter in settings.segmenter
        }
        for value in values:
            assert re.search(rf"\b{value:g}\b", helps[option]), (option, value)


def test_compare_draws_methods_side_by_side(
    stand_in: StandIn, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = tmp_path / "new" / "sheet.png"
    assert run("compare", image, "--classes", "sky, grass", "--out", sheet) == 0
    assert stand_in.asked["method"] == "resclip"
    assert capsys.readouterr().out == f"clip, naclip, resclip side by side: open {sheet}\n"
    single = tmp_path / "one.png"
    run("compare", image, "--classes", "sky, grass", "--out", single, "--methods", "clip")
    with Image.open(sheet) as three, Image.open(single) as one:
        assert three.height == one.height
        assert three.width > 2 * one.width - 300


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--out", "sheet.jpg"), ("a .png file", "sheet.jpg")),
        (("--out", "sheet.png", "--methods", "clip,magic"), ("unknown method 'magic'", "naclip")),
        (("--out", "sheet.png", "--methods", "clip, clip"), ("'clip' more than once",)),
    ],
)
def test_compare_says_what_it_expected(
    stand_in: StandIn,
    image: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    words: tuple[str, ...],
) -> None:
    assert run("compare", image, "--classes", "sky, grass", *options) == 2
    one_line(capsys, *words)
    assert not Path("sheet.png").exists()

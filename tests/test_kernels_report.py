"""The report of the kernels' machine code: what it reads, what it refuses, and that no kernel is left out."""

from __future__ import annotations

import ast
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="kernels need Triton, which exists for Linux alone")

from benchmarks import kernels_report
from benchmarks.cubin import Compilation, Facts, Loop
from benchmarks.kernel_calls import OPS, Call, standard_calls
from benchmarks.kernel_combinations import combined_calls, covering
from benchmarks.kernels_report import Row
from resclip_kernels.launch import Launch, Target, watch

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the report makes of `kernel_samples`, in a process without Triton's interpreter, which is on in this one."""
    done = compiling(tmp_path_factory.mktemp("cache"), "tests/kernel_samples.py")
    assert done.returncode == 0, done.stderr
    results: dict[str, Any] = json.loads(done.stdout)
    return results


def compiling(cache: Path, *arguments: str | int) -> subprocess.CompletedProcess[str]:
    """Run python in a process that compiles kernels."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    # What picks another Triton stays.
    path = os.pathsep.join([*filter(None, [environment.get("PYTHONPATH")]), str(ROOT)])
    environment |= {"PYTHONPATH": path, "TRITON_CACHE_DIR": str(cache)}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def launches() -> list[Launch]:
    """Everything that the quick report's calls launch on sm_90."""
    found = []
    for call in standard_calls(OPS, quick=True):
        with watch(execute=False, target=Target("cuda", 90)) as watcher:
            call.run()
        found += watcher.launches
    return found


def lines_of(sample: dict[str, Any], kernel: str) -> dict[str, list[str]]:
    """The table's lines of one kernel by target, in cells, the mark of a problem left out."""
    found: dict[str, list[str]] = {}
    for line in sample["output"].splitlines():
        words = line.removeprefix("!").split()
        if len(words) == 13 and words[0] == kernel:
            assert words[5] == "1", f"{kernel} was compiled {words[5]} times for {words[1]}"
            found[words[1]] = words
    return found


def test_sound_kernels_pass(samples: dict[str, Any]) -> None:
    sound = samples["sound"]
    assert sound["status"] == 0
    assert sound["output"].endswith("\n6 kernels × targets compiled, 0 spills\n")
    assert "!" not in sound["output"]
    # Asked for twice, compiled once a target.
    assert set(lines_of(sound, "plain_kernel")) == {"sm_80", "sm_90", "gfx942"}


def test_facts_are_those_of_the_machine_code(samples: dict[str, Any]) -> None:
    """A 64 × 64 × 64 product in fp16 by four warps: 4 HGMMA of 64 × 64 × 16, or 32 HMMA of 16 × 8 × 16 a warp."""
    products = lines_of(samples["sound"], "product_kernel")
    assert products["sm_80"][-1] == "HMMA×32"
    assert products["sm_90"][-1] == "HGMMA×4"
    assert products["gfx942"][-1].startswith("v_mfma×")
    # Two tiles of 8 KiB each, at least; a block's limit as the architectures' manuals state it.
    assert {target: int(line[11]) >> 10 for target, line in products.items()} == {
        "sm_80": 163,
        "sm_90": 227,
        "gfx942": 64,
    }
    for target, line in products.items():
        warps, stages, registers, spilled, shared = map(int, line[6:11])
        assert (warps, stages, spilled) == (4, 3, 0), target
        # 64 · 64 sums over 128 lanes are 32 registers, over 256 lanes 16.
        assert (16 if target == "gfx942" else 32) < registers <= 255
        assert shared >= 2 * 8192
    for line in lines_of(samples["sound"], "plain_kernel").values():
        assert line[10] == "0"
        assert line[12] == "-"


def test_a_loop_that_waits_for_all_its_copies_is_refused_unless_it_is_listed(
    samples: dict[str, Any],
) -> None:
    """Two stages copy at the end of a turn what the next one waits for at its head."""
    waiting = samples["waiting"]
    assert waiting["status"] == 1
    (told,) = [line for line in waiting["output"].splitlines() if "prefetches nothing" in line]
    assert told.startswith("product_kernel on sm_80 (none, torch.float16, product_kernel): ")
    assert told.endswith(" 32 on matrix units, waits for all its copies")
    assert "all loops prefetch" not in waiting["output"]
    gone = samples["waiting no more"]
    assert gone["status"] == 0
    (told,) = [line for line in gone["output"].splitlines() if "all loops prefetch" in line]
    assert told.endswith("Wait(kernel='product_kernel', dtype='torch.float16', target='sm_90')")


def test_what_kernels_use_is_kept_in_an_order_that_stays(tmp_path: Path) -> None:
    call = Call("samples", "a case", "B/16", "fp16", print)
    loop = Loop(0, 300, 8, 2, 4, (2, 0))
    row = Row(
        Compilation(jit_functions, {}, {}, {}, {}, Target("cuda", 90)),
        [call],
        Facts(128, 0, 4096, 0, ("f16",), {"HGMMA": 8}, (loop,)),
    )
    file = tmp_path / "kernels.json"
    others = {"sm_90, gone_kernel": "1 registers", "sm_80, other_kernel": "2 registers"}
    file.write_text(json.dumps({"kernels": others}))
    kernels_report.keep([row], file)
    assert json.loads(file.read_text())["kernels"] == {
        "sm_80, other_kernel": "2 registers",
        "sm_90, jit_functions, B/16, fp16, a case": "128 registers, 0 spilled, 4096 shared, HGMMA×8, "
        "loop of 300 (8 matrix, 2 barriers, waits 2 0)",
    }


def test_a_spill_is_refused(samples: dict[str, Any]) -> None:
    """8192 values over 32 lanes are 256 a lane; a lane has 255 registers."""
    spilling = samples["spilling"]
    assert spilling["status"] == 1
    line = lines_of(spilling, "spilling_kernel")["sm_90"]
    assert int(line[9]) > 0
    assert (
        f"\nspilling_kernel on sm_90 (none, torch.float32, spilling_kernel): spills {line[9]} bytes"
        in (spilling["output"])
    )
    assert "\nplain_kernel on" not in spilling["output"]
    assert spilling["output"].endswith("\n2 kernels × targets compiled, 1 spills\n")


def test_a_listed_spill_is_accepted_up_to_what_was_measured(samples: dict[str, Any]) -> None:
    """With a Triton that nobody measured, up to the most with those that somebody did."""
    listed = samples["listed"]
    spilled = listed["spilled"]
    for known in ("as measured", "another version"):
        assert listed[known]["status"] == 0
        assert "!" not in listed[known]["output"]
        count = "\n1 kernels × targets compiled, 1 spills, 1 of them listed\n"
        assert listed[known]["output"].endswith(count)
    for known, words in {"less": f"; {spilled - 1} are listed\n", "another target": "\n"}.items():
        assert listed[known]["status"] == 1
        assert f": spills {spilled} bytes a thread{words}" in listed[known]["output"]


def test_a_listed_spill_that_no_longer_occurs_is_told(samples: dict[str, Any]) -> None:
    sample = samples["listed"]["no spill"]
    assert sample["status"] == 0
    (told,) = [line for line in sample["output"].splitlines() if "no spill any more" in line]
    assert "plain_kernel" in told
    for other in ("as measured", "no spill, as listed"):
        assert "no spill any more" not in samples["listed"][other]["output"]


def test_too_much_shared_memory_is_refused(samples: dict[str, Any]) -> None:
    """Nine stages of two 64 × 128 tiles in fp16 are 288 KiB."""
    assert samples["deep"]["status"] == 1
    assert "needs 294912 bytes of shared memory; a block has 232448" in samples["deep"]["output"]


def test_too_much_tensor_memory_is_refused() -> None:
    fits, exceeds = (
        kernels_report.judge(Target("cuda", 100), Facts(32, 0, 0, columns, (), {}))
        for columns in (512, 513)
    )
    assert fits == []
    assert exceeds == ["needs 513 columns of tensor memory; a block has 512"]


def test_hopper_must_use_its_own_matrix_instruction(samples: dict[str, Any]) -> None:
    """16 rows are too few for HGMMA, which takes 64."""
    assert samples["narrow"]["status"] == 1
    assert lines_of(samples["narrow"], "product_kernel")["sm_90"][-1].startswith("HMMA")
    assert "half-precision tl.dot and no HGMMA instruction" in samples["narrow"]["output"]


def test_a_kernel_that_does_not_compile_is_named_with_its_error(samples: dict[str, Any]) -> None:
    broken = samples["broken"]
    assert broken["status"] == 1
    assert (
        "\nbroken_kernel on sm_90 (none, torch.float32, broken_kernel): does not compile:"
        in broken["output"]
    )
    assert "NameError('nothing_of_that_name is not defined')" in broken["output"]
    # The next one is compiled all the same, by a new process.
    assert lines_of(broken, "plain_kernel")["sm_90"][8].isdigit()
    assert broken["output"].endswith("\n1 of 2 kernels × targets compiled, 0 spills\n")


def test_a_compiler_that_dies_is_reported(samples: dict[str, Any]) -> None:
    assert samples["crash"]["status"] == 1
    assert "plain_kernel on sm_90" in samples["crash"]["output"]
    assert "its process ended with status 7" in samples["crash"]["output"]


def test_arguments_are_specialised_as_triton_does(samples: dict[str, Any]) -> None:
    """Its rules: 1 and None are constants, pointers by dtype, 32 bits where they suffice, divisibility by 16 kept."""
    assert samples["specialised"] == {
        "signature": {
            "aligned": "*fp16",
            "shifted": "*fp32",
            "pair": ["*bf16", "*i64"],
            "round_number": "i32",
            "one": "constexpr",
            "odd": "i32",
            "large": "i64",
            "factor": "fp32",
            "absent": "constexpr",
            "flag": "u1",
            "BLOCK": "constexpr",
        },
        "constants": {"one": 1, "absent": None, "BLOCK": 32},
        # `shifted` starts 4 bytes into its allocation, pair's second 16 bytes into one.
        "divisible": ["aligned", "large", "pair.0", "pair.1", "round_number"],
        "warps": 8,
    }


def test_a_kernel_that_is_wrong_for_one_constant_is_found(samples: dict[str, Any]) -> None:
    """And a call that raises; what is sound is lowered once."""
    assert samples["branches"] == {"status": 0, "output": "2 kernels lowered, 0 problems\n"}
    wrong = samples["wrong branches"]
    assert wrong["status"] == 1
    assert "branching_kernel of samples (branching_kernel): CompilationError" in wrong["output"]
    assert "NoneType" in wrong["output"]
    assert "\nsamples (raising) raises RuntimeError: " in wrong["output"]
    assert wrong["output"].endswith("\n3 kernels lowered, 2 problems\n")


@pytest.mark.parametrize("strength", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_every_kernel_is_lowered_with_every_option(tmp_path: Path, strength: int) -> None:
    """Each value of each option once, and any two of them together."""
    done = compiling(tmp_path, "-m", "benchmarks", "kernels-report", "--combinations", strength)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    count = re.search(r"(\d+) kernels lowered, 0 problems$", done.stdout.strip())
    assert count is not None
    assert int(count[1]) > 50 * strength


def test_a_tritons_own_runtime_compiles_for_a_target_that_is_only_named(
    samples: dict[str, Any],
) -> None:
    outcome = samples["matrix"]
    assert outcome["triton"].startswith("3.")
    assert (outcome["target"], outcome["wanted"], outcome["compiled"]) == ("sm_90", 4, 3)
    assert outcome["spilling"] == 1
    assert [problem.split(" (")[0] for problem in outcome["problems"]] == [
        "broken_kernel",
        "spilling_kernel",
    ]
    assert "nothing_of_that_name" in outcome["problems"][0]
    assert "spills" in outcome["problems"][1]


@pytest.mark.parametrize("strength", (1, 2, 3))
def test_combinations_cover_what_they_should(strength: int) -> None:
    axes = {"a": (1, 2, 3), "b": (True, False), "c": "xyz", "d": (None, 0)}
    rows = list(covering(axes, strength))
    for names in itertools.combinations(axes, strength):
        wanted = set(itertools.product(*(axes[name] for name in names)))
        assert {tuple(row[name] for name in names) for row in rows} == wanted
    # Far fewer than all, and the same each time.
    assert len(rows) <= {1: 4, 2: 14, 3: 30}[strength]
    assert rows == list(covering(axes, strength))


def test_combinations_call_every_op() -> None:
    assert {call.op for call in combined_calls(1)} == OPS.keys()


def test_the_interpreter_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kernels_report, "interpreting", lambda: True)
    with pytest.raises(SystemExit, match="2"):
        kernels_report.main([])
    assert "unset TRITON_INTERPRET" in capsys.readouterr().err


def test_other_options_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kernels_report, "interpreting", lambda: False)
    for arguments in (
        ("--targets", "sm_x"),
        ("--ops", "pamr,attention"),
        ("--jobs", "0"),
        ("--combinations", "0"),
    ):
        with pytest.raises(SystemExit, match="2"):
            kernels_report.main(arguments)
        assert arguments[1].split(",")[-1] in capsys.readouterr().err


def test_the_quick_calls_leave_no_case_model_or_dtype_out() -> None:
    every, quick = (list(standard_calls(OPS, quick=quick)) for quick in (False, True))
    assert len(quick) < len(every) / 2
    for part in ("case", "model", "dtype"):
        parts = [{(call.op, getattr(call, part)) for call in calls} for calls in (every, quick)]
        assert parts[0] == parts[1]
    pairs = {(call.model, call.dtype) for call in quick if call.case == "one pass"}
    assert {("B/16", "fp16"), ("L/14", "bf16"), ("H/14", "fp16")} <= pairs


def test_every_form_of_the_feedback_is_compiled(launches: list[Launch]) -> None:
    """Quick or not: without far pairs' bits, and with a Gaussian whose margin is more than one chunk of columns."""
    forms: dict[str, set[tuple[bool, bool]]] = {}
    for launch in launches:
        tiles = launch.constants.get("TILES")
        if tiles is not None:
            form = tiles.has_far, tiles.margin > 16
            forms.setdefault(launch.kernel.__name__, set()).add(form)
    assert set(forms) == {
        "feedback_sums_kernel",
        "feedback_matrix_kernel",
        "additive_terms_kernel",
        "proxy_weights_kernel",
    }
    for kernel, seen in forms.items():
        assert seen == {(True, False), (False, False), (True, True)}, kernel


def jit_functions() -> dict[str, ast.FunctionDef]:
    """Every function under `triton.jit` in the package, by name."""
    found = {}
    for source in sorted((ROOT / "resclip_kernels").rglob("*.py")):
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and any(
                ast.unparse(decorator).split("(")[0] in {"triton.jit", "jit"}
                for decorator in node.decorator_list
            ):
                assert node.name not in found, f"{source} names a second function {node.name}"
                found[node.name] = node
    return found


@pytest.mark.slow
def test_no_kernel_is_left_out(samples: dict[str, Any], launches: list[Launch]) -> None:
    """What no other function of a kernel calls is launched, or dead."""
    functions = jit_functions()
    called = {
        name.id
        for function in functions.values()
        for name in ast.walk(function)
        if isinstance(name, ast.Name) and name.id != function.name
    }
    launched = {launch.kernel.__name__ for launch in launches}
    assert launched == functions.keys() - called
    assert {name for name in functions if name.endswith("_kernel")} <= launched
    assert samples["names"] == {"status": 0, "output": "plain_kernel\nproduct_kernel\n"}

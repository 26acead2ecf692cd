"""How fast this machine runs a method, against the plain tower, the reference and other programs: `resclip bench`.

Rivals take turns, round by round, so that what else the machine does meanwhile falls on all of them. Weights and pixels
are random: time does not depend on their values, save for the few rounds of path tests that SFR needs.
"""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import json
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from resclip.encoder.dense_encoder import DenseEncoder
from resclip.errors import is_out_of_memory
from resclip.evaluation.distributed import machine_name
from resclip.inference.memory import release
from resclip.io.files import write_atomically
from resclip.loading import PRECISIONS, choose_device
from resclip.methods.catalogue import check_no_steps, find_method
from resclip.models import BUILTIN, adapt
from resclip.models.loading import clip_tokenizer, find_name
from resclip.text.vocabulary import NameEncoder
from resclip.version import __version__
from resclip_kernels import (
    check_count,
    check_implementation,
    check_positive,
    check_type,
    cpu_kind,
    semantic_feedback,
    upsample_argmax,
)

VERSION = 2
"""Of the JSON that is written."""
PLAIN = "plain tower"
GEM = "gem_torch"
IMPLEMENTATIONS = ("torch", "triton", "library", "reference")
ROUNDS = (3, 50)
"""Fewest and most rounds in which each rival runs once."""
STAGES = {
    "embed": "pixels to tokens",
    "blocks": "all but the final one",
    "final block": "a pass of it, with the tower's head",
    "labels": "of the patches, without refinement",
    "refinement": "PAMR of the first pass's logits",
    "feedback": "the second pass",
    "stitch": "labels at the image's size",
    "text": "a name in 80 templates",
}
"""Parts of a method's time, and what they are."""


@dataclass(frozen=True)
class Setting:
    """What is run: a row of the table without its rival."""

    size: int
    """Side of the square images in pixels."""
    names: int
    """Queries of the text, read by SFR."""
    batch: int
    """Images in a call."""
    precision: str
    """A key of `resclip.loading.PRECISIONS`."""


@dataclass(frozen=True)
class Row:
    """What was measured of one rival in one setting."""

    setting: Setting
    rival: str
    """An implementation, "plain tower", "gem_torch", a package of `OTHERS` or, among the stages, one of `STAGES`."""
    seconds: float | None
    """Median time of an image; None where it could not run."""
    best: float | None
    """Least time of an image."""
    rounds: int
    peak_memory: int | None
    """Most bytes of a GPU's tensors during a call, the weights included; None on other devices."""
    note: str = ""
    """Why it could not run."""


@dataclass(frozen=True)
class Speed:
    """All rows of a run, with everything that they depend on."""

    model: str
    method: str
    device: str
    machine: str
    threads: int
    versions: Mapping[str, str]
    rows: list[Row] = field(default_factory=list)
    stages: list[Row] = field(default_factory=list)
    """Where the time of implementation "torch" goes, or of the only one."""

    def record(self) -> dict[str, Any]:
        """As values that JSON can hold."""
        return {"version": VERSION, **asdict(self)}

    def store(self, path: Path) -> None:
        """Write as JSON, whole or not at all; OSError where that is not possible."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(self.record(), indent=1).encode() + b"\n")

    @classmethod
    def read(cls, path: Path) -> Speed:
        """What `store` wrote.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is no such file.
        """
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if document.pop("version") != VERSION:
                raise ValueError("another version")
            rows, stages = (
                [Row(**{**row, "setting": Setting(**row["setting"])}) for row in document.pop(key)]
                for key in ("rows", "stages")
            )
            speed = cls(**document, rows=rows, stages=stages)
            check_rows(rows)
            check_rows(stages, at_least=0)
            speed.table()
            speed.stage_table()
            speed.conditions()
            return speed
        except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError) as error:
            raise ValueError(
                f"{path} holds no speeds of version {VERSION}, as `resclip bench --json` writes them"
            ) from error

    def check_comparable(self, model: str, method: str) -> None:
        """ValueError unless these are speeds of this model and method."""
        if (find_name(model), method) != (self.model, self.method):
            raise ValueError(
                f"the earlier speeds are those of {self.model} by {self.method}, these of {model} by {method}: "
                "compare the same model and method"
            )

    def table(self, before: Speed | None = None) -> str:
        """The rows as text, each beside the plain tower and, with `before`, beside its row there.

        Raises:
            ValueError: `before` is of another model or method.
        """
        from tabulate import tabulate  # Only where a table is shown.

        if before is not None:
            before.check_comparable(self.model, self.method)
        plain = {row.setting: row.seconds for row in self.rows if row.rival == PLAIN}
        old = {(row.setting, row.rival): row.seconds for row in before.rows} if before else {}
        heads = [
            "size",
            "names",
            "batch",
            "precision",
            "what",
            "ms an image",
            "images/s",
            "× plain",
        ]
        heads += ["peak GB"] if any(row.peak_memory for row in self.rows) else []
        heads += ["before", "change"] if before else []
        lines = []
        for row in self.rows:
            setting = row.setting
            line: list[Any] = [
                setting.size,
                setting.names,
                setting.batch,
                setting.precision,
                row.rival,
            ]
            if row.seconds is None:
                lines.append([*line, "-"])
                continue
            base = plain.get(setting)
            line += [f"{1e3 * row.seconds:.1f}", f"{1 / row.seconds:.2f}"]
            line.append("-" if base is None else f"{row.seconds / base:.2f}")
            if "peak GB" in heads:
                line.append("-" if row.peak_memory is None else f"{row.peak_memory / 1e9:.2f}")
            if before:
                earlier = old.get((setting, row.rival))
                line.append("-" if earlier is None else f"{1e3 * earlier:.1f}")
                line.append("-" if earlier is None else f"{row.seconds / earlier - 1:+.0%}")
            lines.append(line)
        text: str = tabulate(lines, headers=heads, disable_numparse=True, stralign="right")
        return text

    def stage_table(self) -> str:
        """Milliseconds of each stage as text, a line for each setting; for text those of one name."""
        from tabulate import tabulate  # Only where a table is shown.

        shown = [stage for stage in STAGES if any(row.rival == stage for row in self.stages)]
        lines = []
        for setting in dict.fromkeys(row.setting for row in self.stages):
            seconds = {row.rival: row.seconds for row in self.stages if row.setting == setting}
            times = [seconds.get(stage) for stage in shown]
            lines.append(
                [setting.size, setting.names, setting.batch, setting.precision]
                + ["-" if time is None else f"{1e3 * time:.1f}" for time in times]
            )
        heads = ["size", "names", "batch", "precision", *shown]
        text: str = tabulate(lines, headers=heads, disable_numparse=True, stralign="right")
        return text

    def notes(self) -> list[str]:
        """Why rows have no time, a line each."""
        return [
            f"{row.rival}, {row.setting.size} pixels: {row.note}"
            for row in self.rows
            if row.seconds is None
        ]

    def conditions(self) -> str:
        """One line on what the times hold for."""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return (
            f"{self.model} with random weights, method {self.method}; {self.device}: {self.machine}, "
            f"{self.threads} threads; {versions}. Median of rounds in which all take turns."
        )


def measure(
    model: str = "ViT-B-16",
    method: str = "resclip",
    *,
    sizes: Sequence[int] = (224,),
    names: Sequence[int] = (20,),
    batches: Sequence[int] = (1,),
    precisions: Sequence[str] = ("fp32",),
    implementations: Sequence[str] | None = None,
    device: str | torch.device | None = None,
    seconds: float = 5.0,
    progress: Callable[[Setting], None] | None = None,
) -> Speed:
    """Time a method on this machine.

    Args:
        model: of open_clip, built with random weights; see `resclip models`.
        method: as in `resclip.load`; not ProxyCLIP, whose second model would be downloaded.
        sizes, names, batches, precisions: every combination is a setting.
        implementations: of "torch", "triton", "library" and "reference"; None: "torch", and "triton" on a GPU.
        device: None: a GPU if there is one.
        seconds: for each setting, about.
        progress: called before each setting.

    Raises:
        ValueError: a value that does not fit.
    """
    import open_clip

    if model == BUILTIN:
        raise ValueError(
            "the built-in model is not timed: name a model of open_clip, such as 'ViT-B-16'"
        )
    name = find_name(model)
    chosen = find_method(method)
    check_no_steps(chosen, "the encoder, which is measured here,")
    if chosen.base == "proxyclip":
        raise ValueError(
            "method 'proxyclip' needs the weights of a second vision model, and weights are random here: "
            "choose another method"
        )
    where = choose_device(device)
    if implementations is None:
        implementations = ("torch", "triton") if where.type == "cuda" else ("torch",)
    for implementation in implementations:
        if implementation not in IMPLEMENTATIONS:
            valid = ", ".join(map(repr, IMPLEMENTATIONS))
            raise ValueError(f"implementations must be of {valid}; got {implementation!r}")
        check_implementation(implementation)
    if "triton" in implementations and where.type != "cuda":
        raise ValueError(
            f"implementation 'triton' needs a GPU, and the device is {where}: leave it out"
        )
    settings = [
        Setting(size, count, batch, precision)
        for precision in precisions
        for size in sizes
        for count in names
        for batch in batches
    ]
    check_settings(settings)
    speed = Speed(
        name,
        method,
        str(where),
        machine_name(where) + (f" ({cpu_kind()})" if where.type == "cpu" else ""),
        torch.get_num_threads(),
        versions(),
    )
    for setting in settings:
        if progress is not None:
            progress(setting)
        torch.manual_seed(0)
        clip = open_clip.create_model(name, force_image_size=setting.size)
        tower = adapt(clip)
        if 0 in tower.grid(setting.size, setting.size):
            raise ValueError(
                f"size must be at least a patch of {name}, {max(tower.patch_size)} pixels; got {setting.size}"
            )
        clip = clip.to(where, PRECISIONS[setting.precision]).eval()
        pixels = torch.randn(setting.batch, 3, setting.size, setting.size)
        pixels = pixels.to(where, PRECISIONS[setting.precision])
        rivals: dict[str, Callable[[], Any]] = {PLAIN: partial(clip.visual, pixels)}
        for implementation in implementations:
            encoder = DenseEncoder(
                clip,
                chosen.base,
                chosen.rcs,
                chosen.sfr,
                final_block=chosen.final_block,
                correlation=chosen.correlation,
                pieces=chosen.pieces,
                position=chosen.position,
                implementation=implementation,
            )
            text = normalize(torch.randn(setting.names, encoder.tower.output_dim), dim=1).to(where)
            words = text if chosen.sfr is not None else None
            rivals[implementation] = partial(encoder, pixels, words)
        notes = {}
        others: dict[str, Callable[[], Any] | str | None] = {
            GEM: gem_rival(name, setting, where, pixels)
        }
        if where.type == "cpu" and setting.precision != "fp16":
            others |= limits(clip.visual, pixels)
        for rival, other in others.items():
            if isinstance(other, str):
                notes[rival] = other
            elif other is not None:
                rivals[rival] = other
        speed.rows.extend(take_turns(setting, rivals, where, seconds))
        speed.rows.extend(
            Row(setting, rival, None, None, 0, None, note) for rival, note in notes.items()
        )
        staged = "torch" if "torch" in implementations else implementations[0]
        encoder = rivals[staged].func  # type: ignore[attr-defined]
        calls, before = stages(clip, encoder, pixels, text)
        speed.stages.extend(without(take_turns(setting, calls, where, seconds / 2), before))
    return speed


def stages(
    clip: Any, encoder: DenseEncoder, pixels: Tensor, text: Tensor
) -> tuple[dict[str, Callable[[], Any]], dict[str, str]]:
    """A call for each stage, and for those that cannot run alone the stage whose time is part of theirs."""
    final, tower = encoder.final, encoder.tower
    with torch.no_grad():
        inputs = encoder.run_blocks(pixels)
        first = final.run(inputs, None, None)
        patches, cls = final.features(inputs, first.tokens)
        logits = final.logits(patches, cls, text)

    def one_pass() -> None:
        final.features(inputs, final.run(inputs, None, None).tokens)

    calls = {
        "embed": lambda: tower.embed(pixels),
        "blocks": lambda: encoder.run_blocks(pixels),
        "final block": one_pass,
    }
    before = {"blocks": "embed"}
    if final.sfr is not None:
        coarse = replace(final.sfr, refine_iterations=0)
        sfr = final.sfr
        feedback = semantic_feedback(
            final.segment_patches(sfr, patches, pixels, text, cls),
            sfr.feedback_options(),
            implementation=encoder.implementation,
        )

        def second_pass() -> None:
            state = semantic_feedback(
                feedback.labels, sfr.feedback_options(), implementation=encoder.implementation
            )
            final.features(inputs, final.run(inputs, state, first.cross_layer).tokens)

        calls |= {
            "labels": lambda: final.segment_patches(coarse, patches, pixels, text, cls),
            "refinement": lambda: final.segment_patches(sfr, patches, pixels, text, cls),
            "feedback": second_pass,
        }
        before["refinement"] = "labels"
    size = (pixels.shape[2], pixels.shape[3])
    calls["stitch"] = lambda: upsample_argmax(
        logits, size, logit_scale=40.0, implementation=encoder.implementation
    )
    try:
        tokenizer = clip_tokenizer(clip)
    except (ValueError, AttributeError):
        return calls, before  # Another tokenizer, which may have to be downloaded.
    # As often as there are images in a call, by which times are divided.
    words = ["a thing"] * len(pixels)
    calls["text"] = lambda: [NameEncoder(clip, tokenizer).encode_rows([word]) for word in words]
    return calls, before


def without(rows: Iterable[Row], before: Mapping[str, str]) -> Iterator[Row]:
    """The rows, each without the time of the stage that is part of it."""
    seconds: dict[str, float] = {}
    for row in rows:
        taken = row.seconds
        if taken is not None:
            seconds[row.rival] = taken
            taken = max(0.0, taken - seconds.get(before.get(row.rival, ""), 0.0))
        yield replace(row, seconds=taken)


def limits(visual: nn.Module, pixels: Tensor) -> dict[str, Callable[[], Any] | str | None]:
    """The plain tower by other programs, as far as they are installed; a sentence for one that fails."""
    installed = [package for package in OTHERS if importlib.util.find_spec(package) is not None]
    if not installed or importlib.util.find_spec("onnx") is None:
        return {}
    array = pixels.float().numpy()
    found: dict[str, Callable[[], Any] | str | None] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "tower.onnx")
        for package in installed:
            try:
                if not Path(file).exists():
                    export(visual, pixels, file)
                found[package] = OTHERS[package](file, array, pixels.dtype)
            # Another program's errors are of any kind, and the others' times are wanted all the same.
            except Exception as error:  # noqa: BLE001
                found[package] = failed(error)
    return found


def export(visual: nn.Module, pixels: Tensor, file: str) -> None:
    """Write a tower as float32 ONNX."""
    plain = copy.deepcopy(visual).float()
    # With gradients, torch's attention takes no fused path, which ONNX has no word for.
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            plain, (pixels.float(),), file, dynamo=False, opset_version=17, input_names=["pixels"]
        )


def by_onnxruntime(file: str, array: Any, dtype: torch.dtype) -> Callable[[], Any] | None:
    """The tower in ONNX Runtime, in float32; None for another dtype."""
    import onnxruntime

    if dtype != torch.float32:
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Its threads would spin on while the next rival runs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return partial(session.run, None, {"pixels": array})


def by_openvino(file: str, array: Any, dtype: torch.dtype) -> Callable[[], Any]:
    """The tower in OpenVINO."""
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "bf16" if dtype == torch.bfloat16 else "f32",
    }
    return partial(openvino.Core().compile_model(file, "CPU", settings), array)


OTHERS: dict[str, Callable[[str, Any, torch.dtype], Callable[[], Any] | None]] = {
    "onnxruntime": by_onnxruntime,
    "openvino": by_openvino,
}
"""Packages that run the plain tower on a CPU: from a file, pixels and a dtype to a call."""


def failed(error: Exception) -> str:
    """One sentence on another program's error."""
    return f"failed: {type(error).__name__}: {str(error).partition(chr(10))[0][:80]}"


def take_turns(
    setting: Setting, rivals: Mapping[str, Callable[[], Any]], device: torch.device, seconds: float
) -> Iterator[Row]:
    """Rounds in which every rival runs once, after one that is not counted."""
    times: dict[str, list[float]] = {rival: [] for rival in rivals}
    peaks: dict[str, int] = {}
    notes: dict[str, str] = {}
    start = None
    for number in range(-1, ROUNDS[1]):
        for rival, run in rivals.items():
            if rival in notes:
                continue
            try:
                taken, peak = timed(run, device)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                notes[rival] = "not enough memory"
                continue
            if number >= 0:
                times[rival].append(taken / setting.batch)
                peaks[rival] = max(peak, peaks.get(rival, 0))
        if notes:
            release()
        start = time.perf_counter() if start is None else start
        if number + 1 >= ROUNDS[0] and time.perf_counter() - start > seconds:
            break
    for rival, taken_times in times.items():
        if rival in notes:
            yield Row(setting, rival, None, None, 0, None, notes[rival])
            continue
        peak_memory = peaks[rival] if device.type == "cuda" else None
        median = statistics.median(taken_times)
        yield Row(setting, rival, median, min(taken_times), len(taken_times), peak_memory)


@torch.no_grad()
def timed(run: Callable[[], Any], device: torch.device) -> tuple[float, int]:
    """Seconds of one call, and the most bytes of a GPU's tensors during it (0 elsewhere)."""
    is_gpu = device.type == "cuda"
    if is_gpu:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    run()
    if is_gpu:
        torch.cuda.synchronize(device)
    taken = time.perf_counter() - start
    return taken, torch.cuda.max_memory_allocated(device) if is_gpu else 0


def gem_rival(
    name: str, setting: Setting, device: torch.device, pixels: Tensor
) -> Callable[[], Any] | str | None:
    """GEM (arXiv 2312.00878) by its package gem_torch; a sentence where it fails, None where it is not installed."""
    if importlib.util.find_spec("gem") is None:
        return None
    words = [f"thing {number}" for number in range(setting.names)]
    try:
        import gem

        model = gem.create_gem_model(model_name=name, pretrained=None, device=device)
        model = model.to(device, PRECISIONS[setting.precision]).eval()
        with torch.no_grad():
            model(pixels, words)
    # Another program's errors are of any kind, and the others' times are wanted all the same.
    except Exception as error:  # noqa: BLE001
        return failed(error)
    return partial(model, pixels, words)


def check_rows(rows: Sequence[Row], at_least: int = 1) -> None:
    """TypeError or ValueError unless these are rows of a file: so many, each with a time, or why there is none."""
    check_count("the number of rows", len(rows), at_least)
    check_settings([row.setting for row in rows])
    for row in rows:
        check_type("rival", row.rival, str, "a text")
        check_type("note", row.note, str, "a text")
        check_count("rounds", row.rounds, 0)
        if row.peak_memory is not None:
            check_count("peak_memory", row.peak_memory, 0)
        if row.seconds is not None:
            check_positive("seconds", row.seconds)
        elif not row.note:
            raise ValueError("neither seconds nor a note")


def check_settings(settings: Sequence[Setting]) -> None:
    """ValueError for a value that cannot be run."""
    for setting in settings:
        for what in ("size", "names", "batch"):
            check_count(what, getattr(setting, what), 1)
        if setting.precision not in PRECISIONS:
            raise ValueError(
                f"unknown precision {setting.precision!r}; use one of: {', '.join(PRECISIONS)}"
            )


def versions() -> dict[str, str]:
    """Of what the times depend on."""
    found = {
        "resclip": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    for package in ("triton", GEM, *OTHERS):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found

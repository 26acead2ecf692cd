"""`resclip demo`, `compare`, `models` and `methods`: a first look, and the lists to choose from."""

from __future__ import annotations

import argparse
import shutil
import textwrap
from dataclasses import fields
from pathlib import Path
from typing import Any

from resclip.cli.options import load_from, png_path
from resclip.text.class_names import parse_classes


def show_demo(arguments: argparse.Namespace) -> int:
    """Segment the packaged scene with the built-in model; writes scene.png and demo.png to `arguments.out`."""
    import numpy as np

    from resclip.builtin.scenes import CLASS_NAMES, demo_scene
    from resclip.io.images import save_png
    from resclip.loading import load

    folder = Path(arguments.out)
    folder.mkdir(parents=True, exist_ok=True)
    scene = demo_scene()
    present = np.unique(scene.mask)
    names = [CLASS_NAMES[index] for index in present]
    result = load("builtin", classes=names).segment(scene.picture())
    path = folder / "demo.png"
    save_png(scene.picture(), folder / "scene.png")
    save_png(result.sheet(), path)
    scores = result.mean_probabilities()
    width = max(map(len, ["class", *names])) + 2
    print(f"{'class':{width}}{'share':>8}{'probability':>14}")
    for name, fraction in result.areas().items():
        print(f"{name:{width}}{fraction:>8.1%}{scores[name]:>14.2f}")
    agreement = float(np.mean(present[result.labels] == scene.mask))
    print(f"\n{agreement:.1%} of the pixels agree with what was drawn.")
    print(f"Image, classes and legend: open {path}")
    return 0


def show_comparison(arguments: argparse.Namespace) -> int:
    """Segment one image by several methods; writes them side by side to `arguments.out`.

    Raises:
        ValueError: the options or the image cannot be used.
        OSError: the file cannot be written.
    """
    from resclip.io.images import read_image, save_png
    from resclip.methods.catalogue import find_method
    from resclip.result import comparison_sheet

    methods = [name.strip() for name in arguments.methods.split(",")]
    repeated = {name for name in methods if methods.count(name) > 1}
    if repeated:
        raise ValueError(f"expected each method once, got {min(repeated)!r} more than once")
    classes = parse_classes(arguments.classes)
    image = read_image(arguments.image)
    path = png_path(arguments.out)
    for name in methods:
        find_method(name)
    results = {name: load_from(arguments, classes, method=name).segment(image) for name in methods}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_png(comparison_sheet(results), path)
    print(f"{', '.join(methods)} side by side: open {path}")
    return 0


def show_models(_: argparse.Namespace) -> int:
    """Print the models that are recommended, then one line per model: its name, then its pretrained tags."""
    from resclip.builtin import BUILTIN
    from resclip.models.listing import list_models
    from resclip.models.recommended import PUBLISHED_AVERAGES, RECOMMENDED, REMOTE_SENSING

    columns = text_columns()

    def show(text: str, label: str = "") -> None:
        """Print a paragraph, behind a label or further in than it."""
        print(textwrap.fill(text, columns, initial_indent=label, subsequent_indent="  "))

    print(
        "Recommended (--model MODEL --pretrained TAG); without these options the first is taken\n"
    )
    line = "  {:18}{:20}{:>10}{:>8}{:>7}   {:10}{}"
    print(line.format("model", "tag", "download", "pixels", "patch", "runs on", "for").rstrip())
    for one in RECOMMENDED:
        size = f"{one.gigabytes:.2f} GB"
        print(line.format(one.model, one.tag, size, one.side, one.patch, one.runs_on, one.purpose))
    print()
    show(
        "download: parameters times 4 bytes; a file of float16 has half. pixels: side of the images that the model was "
        "trained on; any size is segmented. patch: side in pixels.",
        "  ",
    )
    base, large = PUBLISHED_AVERAGES.values()
    show(
        f"Larger is not better here: ResCLIP's published mIoU, averaged over eight datasets, is {base} with ViT-B/16 "
        f"and {large} with ViT-L/14 (CVPR 2025, arXiv 2411.15851, tables 1 and 2).",
        "  ",
    )
    print("\nImages from above: these weights are files, to be given as --pretrained PATH\n")
    for name, hosts, files in REMOTE_SENSING:
        show(f"(--model: {hosts}): {files}", f"  {name} ")
    print("\nAll models (--model), each with its tags (--pretrained)\n")
    models = list_models()
    width = max(len(name) for name, _ in models) + 2
    print(
        f"{BUILTIN:{width}}the small built-in model for drawn scenes: no download, no --pretrained"
    )
    for name, tags in models:
        print(f"{name:{width}}{', '.join(tags) or '(no tags: --pretrained takes a checkpoint)'}")
    return 0


def text_columns() -> int:
    """How wide paragraphs are, in characters."""
    return max(60, min(100, shutil.get_terminal_size().columns))


def show_methods(_: argparse.Namespace) -> int:
    """Print the methods with what can be added to them, the predictors, the correlations, and the presets."""
    from resclip.methods.catalogue import BASES, METHODS, MODULES, PAMR, RESCLIP_CITATION
    from resclip.methods.correlation import MEANINGS
    from resclip.methods.pieces import KINDS
    from resclip.methods.presets import PRESETS
    from resclip.methods.steps import STEP_KINDS, SUFFIXES
    from resclip.predictors.registry import PREDICTOR_SUMMARIES, predictor_names

    columns = text_columns()
    width = max(map(len, [*BASES, *PRESETS, *STEP_KINDS])) + 4
    indent = " " * width

    def show(name: str, *texts: str) -> None:
        """Print a name, and beside it its texts, each starting a line."""
        label = f"  {name}"
        for text in texts:
            print(
                textwrap.fill(
                    text, columns, initial_indent=f"{label:{width}}", subsequent_indent=indent
                )
            )
            label = ""

    print(
        "Methods (--method): one of these, alone or followed by +rcs, +sfr or both, and by steps: "
        f"{', '.join('+' + suffix for suffix in (*SUFFIXES, PAMR))}\n"
    )
    print(f"  {'method':{width - 2}}{'compares':16}{'residual, MLP':15}{'+rcs':6}+sfr")
    for base in BASES.values():
        compares: str = "proxy features" if base.proxy else base.correlation.scores
        if base.neighbourhood_std is not None:
            compares += ", nearby"
        block = "kept" if base.final_block == "full_residual" else "left out"
        with_rcs, with_sfr = (
            "yes" if f"{base.name}+{name}" in METHODS else "no" for name in MODULES
        )
        print(f"  {base.name:{width - 2}}{compares:16}{block:15}{with_rcs:6}{with_sfr}")
    print()
    show(
        "",
        "compares: what the final block's attention compares, see the correlations below; nearby: near patches count "
        "more. residual, MLP: whether the final block keeps its own",
    )
    print()
    for base in BASES.values():
        composition = ", ".join(
            name + options_text(part) for name, part in (*base.pieces.items(), *base.steps.items())
        )
        show(base.name, base.summary, *([f"= {composition}"] if composition else []), base.citation)
    show("resclip", f"{METHODS['resclip'].summary}, the same as naclip+rcs+sfr", RESCLIP_CITATION)
    print("\nPredictors (--method of `resclip evaluate`), which take no +rcs or +sfr")
    for name, target in predictor_names().items():
        show(name, PREDICTOR_SUMMARIES.get(name, target))
    show("MODULE:FUNCTION", "a predictor of your own; see docs/predictors.md")
    print("\nCorrelations (--correlation), for all methods but proxyclip")
    for scores, meaning in MEANINGS.items():
        show(scores, meaning)
    show(
        "",
        "options after the name, separated by commas: temperature=T (below 1 sharpens), window=W (odd, in patches), "
        "layer=N (an early block's attention), blocks=N (in the last N blocks), projections=N and seed=S (random), "
        "path=FILE (learned)",
    )
    print("\nPieces (--piece NAME, NAME:OPTIONS or NAME:none), in the order in which they act")
    for name, kind in KINDS.items():
        show(name, first_sentence_of(kind))
    print("\nSteps behind the tokens (--step, as --piece), in the order in which they act")
    for name, kind in STEP_KINDS.items():
        suffix = next((f"; +{short}" for short, step in SUFFIXES.items() if step == name), "")
        show(name, first_sentence_of(kind) + suffix)
    print("\nPresets (--preset)")
    for preset in PRESETS.values():
        show(preset.name, preset.summary)
    return 0


def first_sentence_of(kind: type[Any]) -> str:
    """The first sentence of a class's docstring."""
    text = " ".join((kind.__doc__ or "").split())
    return text.partition(". ")[0].rstrip(".")


def options_text(part: Any) -> str:
    """A piece's or step's options that are not the defaults, as "(name=value, …)"; empty where all are."""
    changed = [
        f"{item.name}={text_of(getattr(part, item.name))}"
        for item in fields(part)
        if getattr(part, item.name) != item.default
    ]
    return f"({', '.join(changed)})" if changed else ""


def text_of(value: Any) -> str:
    """An option's value; numbers of blocks that follow one another as a range."""
    if isinstance(value, tuple) and value and value == tuple(range(value[0], value[-1] + 1)):
        return f"{value[0]}-{value[-1]}"
    return str(value)

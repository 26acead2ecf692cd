"""Train the built-in CLIP on captioned scenes: `python -m resclip.builtin.training.train --output DIR`.

A run depends on its settings alone: each step draws its batch from (seed, step), so that an interrupted run continues
from its checkpoint to the same weights.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from resclip.builtin.tokenizer import WordTokenizer
from resclip.builtin.training.batches import Batch, Pool, draw_batch
from resclip.builtin.training.captions import PLAIN_TEMPLATES, every_word, say
from resclip.builtin.training.losses import (
    caption_loss,
    mean_of_cells,
    phrase_list,
    phrase_loss,
    share_loss,
    truth_table,
)
from resclip.builtin.training.model import (
    build,
    configuration,
    decayed_and_plain,
    export,
    image_views,
    text_embeddings,
)
from resclip.io.files import write_atomically

LARGEST_SCALE = 100.0
"""CLIP's bound on the logit scale."""


@dataclass(frozen=True)
class Settings:
    """Everything that decides the weights, apart from the number of steps."""

    seed: int = 0
    scenes: int = 3000
    whole: int = 12
    mosaics: int = 20
    cells_from: int = 3
    cells_to: int = 10
    rate: float = 1e-3
    warm_up: int = 80
    weight_decay: float = 0.05
    layers: int = 12
    width: int = 128
    size: int = 112
    view_weights: tuple[float, float, float] = (0.3, 1.0, 1.0)  # Of value, key and middle.
    find_weight: float = 0.3
    mean_decay: float = 0.99
    things_from: int = 750
    """Step from which some images are close-ups and every named thing must have some patches."""
    close_ups: float = 0.35
    share_weight: float = 1.0


class Trainer:
    """A model, its optimiser and its step count; `step()` makes one step and returns the losses."""

    def __init__(self, settings: Settings, pool: Pool, steps: int, device: str = "cpu") -> None:
        if steps < 1:
            raise ValueError(f"a run needs at least 1 step, got {steps}")
        torch.manual_seed(settings.seed)
        self.settings, self.pool, self.steps, self.device = settings, pool, steps, device
        self.tokenizer = WordTokenizer(every_word())
        self.config = configuration(
            self.tokenizer.vocab_size, settings.layers, settings.width, settings.size
        )
        self.model = build(self.config).to(device)
        decayed, plain = decayed_and_plain(self.model)
        groups = [
            {"params": decayed, "weight_decay": settings.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=settings.rate, betas=(0.9, 0.98))
        self.done = 0
        self.mean = {
            name: value.detach().clone() for name, value in self.model.state_dict().items()
        }

    def rate(self) -> float:
        """Warm-up, constant, and a straight line to zero over the last quarter of the run."""
        warm = min(1.0, (self.done + 1) / self.settings.warm_up)
        left = (self.steps - self.done) / (0.25 * self.steps)
        return self.settings.rate * min(warm, left)

    def texts(self, sentences: Sequence[str]) -> Tensor:
        return F.normalize(
            text_embeddings(self.model, self.tokenizer(sentences).to(self.device)), dim=-1
        )

    def losses(self, batch: Batch, generator: np.random.Generator) -> dict[str, Tensor]:
        """The weighted losses of a batch, by name."""
        images, views = image_views(self.model, batch.pixels.to(self.device))
        phrases = phrase_list(batch.phrases)
        spoken = [PLAIN_TEMPLATES[int(generator.integers(len(PLAIN_TEMPLATES)))] for _ in phrases]
        spoken = [
            form.format(say(phrase, generator))
            for form, phrase in zip(spoken, phrases, strict=True)
        ]
        texts = self.texts(batch.captions + spoken)
        captions, said = texts[: len(batch.captions)], texts[len(batch.captions) :]
        scale = self.model.logit_scale.exp()
        cells = batch.cell_of_patch.to(self.device)
        holds = truth_table(batch.phrases, batch.phrases).to(self.device)
        named = truth_table([(phrase,) for phrase in phrases], batch.phrases).to(self.device)

        numbers = {
            name: number for number, name in enumerate(sorted({name for name, _ in phrases}))
        }
        nouns = torch.tensor([numbers[name] for name, _ in phrases], device=self.device)

        whole = F.normalize(images[: len(batch.whole)], dim=-1)
        result = {"image": caption_loss(whole, captions, holds[batch.whole], scale)}
        for (name, view), weight in zip(views.items(), self.settings.view_weights, strict=True):
            patches = F.normalize(view, dim=-1)
            about, found = phrase_loss(patches, cells, said, named, scale)
            result[f"{name} about"] = weight * about
            result[f"{name} found"] = weight * self.settings.find_weight * found
            if self.done >= self.settings.things_from:
                share = share_loss(patches, cells, said, named, nouns, scale)
                result[f"{name} share"] = weight * self.settings.share_weight * share
            if name == "value":
                means = mean_of_cells(patches, cells, len(captions))
                result["mean"] = 0.5 * caption_loss(means, captions, holds, scale)
        return result

    def step(self) -> dict[str, float]:
        settings = self.settings
        generator = np.random.default_rng([settings.seed, self.done])
        batch = draw_batch(
            self.pool, generator, settings.whole, settings.mosaics, settings.size, 8,
            (settings.cells_from, settings.cells_to),
            settings.close_ups if self.done >= settings.things_from else 0.0,
        )  # fmt: skip
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        self.model.train()
        losses = self.losses(batch, generator)
        total = torch.stack(list(losses.values())).sum()
        if not bool(torch.isfinite(total)):
            raise RuntimeError(
                f"the loss is {float(total)} at step {self.done + 1}: try a smaller rate"
            )
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.done += 1
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=float(np.log(LARGEST_SCALE)))
            keep = min(settings.mean_decay, self.done / (self.done + 10))
            for name, value in self.model.state_dict().items():
                self.mean[name].lerp_(value, 1 - keep)
        return {name: value.item() for name, value in losses.items()} | {"total": total.item()}

    def save(self, path: Path) -> None:
        """Write a checkpoint, atomically."""
        content = io.BytesIO()
        stored = {
            "settings": asdict(self.settings), "done": self.done, "model": self.model.state_dict(),
            "mean": self.mean, "optimizer": self.optimizer.state_dict(),
        }  # fmt: skip
        torch.save(stored, content)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content.getvalue())

    def restore(self, path: Path) -> None:
        """Continue from a checkpoint; ValueError names settings that differ from this run's."""
        stored: dict[str, Any] = torch.load(path, map_location=self.device, weights_only=True)
        mine, theirs = asdict(self.settings), stored["settings"]
        different = [
            f"{name}: {theirs.get(name)} in it, {mine[name]} now"
            for name in mine if theirs.get(name) != mine[name]
        ]  # fmt: skip
        if different:
            raise ValueError(f"{path} was written with other settings ({'; '.join(different)})")
        if stored["done"] > self.steps:
            raise ValueError(
                f"{path} is at step {stored['done']}, past this run's {self.steps} steps"
            )
        self.model.load_state_dict(stored["model"])
        self.optimizer.load_state_dict(stored["optimizer"])
        self.mean = stored["mean"]
        self.done = stored["done"]

    def export(self, directory: Path) -> int:
        """Write the running mean of the weights as a folder that open_clip loads; returns its size in bytes."""
        return export(directory, self.config, self.mean, self.tokenizer)


def run(trainer: Trainer, directory: Path, every: int = 50) -> None:
    """Train to the end; a checkpoint and an export every `every` steps and at the end."""
    checkpoint = directory / "checkpoint.pt"
    recent: list[dict[str, float]] = []
    with tqdm(total=trainer.steps, initial=trainer.done, desc="steps") as bar:
        while trainer.done < trainer.steps:
            recent = [*recent[-19:], trainer.step()]
            bar.set_postfix(
                {
                    name: f"{sum(losses[name] for losses in recent) / len(recent):.3f}"
                    for name in recent[-1]
                },
                refresh=False,
            )
            bar.update()
            if trainer.done % every == 0 or trainer.done == trainer.steps:
                trainer.save(checkpoint)
                size = trainer.export(directory / "model")
                bar.write(f"wrote {checkpoint} and {directory / 'model'} ({size / 1e6:.1f} MB)")


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m resclip.builtin.training.train", description=__doc__.splitlines()[0]
    )
    defaults = Settings()
    parser.add_argument(
        "--output", type=Path, required=True, help="folder for checkpoint.pt and model/"
    )
    parser.add_argument(
        "--steps", type=int, default=1550, help="length of the whole run (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument(
        "--scenes", type=int, default=defaults.scenes, help="scenes in the pool (%(default)s)"
    )
    parser.add_argument(
        "--rate", type=float, default=defaults.rate, help="learning rate (%(default)s)"
    )
    parser.add_argument(
        "--every", type=int, default=50, help="steps between checkpoints (%(default)s)"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... (%(default)s)")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads (torch's choice)")
    parser.add_argument("--fresh", action="store_true", help="ignore a checkpoint in --output")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = arguments()
    options = parser.parse_args(argv)
    for name in ("steps", "scenes", "every"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name)}")
    if options.rate <= 0:
        parser.error(f"--rate must be positive, got {options.rate}")
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        torch.zeros(1, device=options.device)
    except (RuntimeError, AssertionError) as error:
        parser.error(f"--device {options.device} cannot be used here: {str(error).splitlines()[0]}")
    settings = replace(Settings(), seed=options.seed, scenes=options.scenes, rate=options.rate)
    pool = Pool.draw(options.scenes, progress=True)
    trainer = Trainer(settings, pool, options.steps, options.device)
    checkpoint = options.output / "checkpoint.pt"
    if checkpoint.exists() and not options.fresh:
        try:
            trainer.restore(checkpoint)
        except ValueError as error:
            parser.error(f"cannot continue: {error}; give --fresh or another --output")
        print(f"continuing from {checkpoint} at step {trainer.done}", flush=True)
    try:
        run(trainer, options.output, options.every)
    except KeyboardInterrupt:
        trainer.save(checkpoint)
        print(f"stopped at step {trainer.done}; the same command continues", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

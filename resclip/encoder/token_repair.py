"""The final block of methods that repair tokens: outliers filled, tokens averaged by likeness, a second stream.

SC-CLIP, SFP and DIH-CLIP are compositions of these pieces; each may be put on another base that attends by CLIP's own
tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from resclip.encoder.final_block import FinalBlock, Pass, TowerInputs
from resclip.encoder.outliers import fill, find_outliers
from resclip.encoder.selected_heads import SelectedHeads, block_of_selected_heads
from resclip.encoder.trace import BlockStep, Trace
from resclip_kernels import (
    SemanticFeedback,
    fast_linear,
    proxy_attention,
    residual_attention,
    similarity_aggregation,
)


class RepairTrace(Trace):
    """Keeps the blocks whose patches are compared or summed."""

    def __init__(self, final: RepairedBlock, pixels: Tensor, grid: tuple[int, int]) -> None:
        super().__init__(final, pixels, grid)
        self.repairs = final
        self.outputs: dict[int, Tensor] = {}
        """(B, L, D) of the blocks that are compared, by number."""
        self.stream: Tensor | None = None
        """(B, L, D): the sum of the blocks of the second stream so far."""
        self.last: BlockStep | None = None
        """The last block before the final one, where its attention tells outliers."""

    def after(self, step: BlockStep) -> Tensor:
        output = super().after(step)
        final = self.repairs
        if step.number == final.similarity and final.pieces.heads is not None:
            self.outputs[step.number] = output + block_of_selected_heads(
                final.tower, step, final.pieces.heads.kept
            )
        elif step.number in (final.similarity, final.before):
            self.outputs[step.number] = output
        if step.number == final.after:
            self.outputs.setdefault(-1, output)
        if step.number in final.stream_layers:
            self.stream = output if self.stream is None else self.stream + output
        outliers = final.pieces.outliers
        if outliers is not None and outliers.detector == "salience":
            self.last = step
        return output


class Stream(NamedTuple):
    """Tokens that go through the final block."""

    tokens: Tensor
    """(B, L, D), or (B, n, D) where patches attend to patches alone."""
    cls: Tensor | None
    """(B, 1, D): what is added to each patch in that case."""
    query: Tensor
    key: Tensor
    value: Tensor
    """(B, A, L, d) each, or of n patches."""
    projections: tuple[Tensor, ...]
    branch: Tensor | None
    """(B, A, n, d): what the values give by the similarity branch."""
    scores: bool
    """Whether the base's own map counts."""
    selected: SelectedHeads | None
    """The heads of least entropy, chosen once by the maps without SFR and RCS; None where all heads count."""


@dataclass(frozen=True, eq=False, kw_only=True)
class RepairInputs(TowerInputs):
    """What every pass of the final block reads."""

    streams: tuple[Stream, ...]
    outliers: Tensor | None
    """(B, n) bool."""
    similar: Tensor | None
    """(B, n, D): what the similarity branch compares."""
    after: Tensor | None
    """(B, n, D): what the result is averaged by."""


class RepairedBlock(FinalBlock):
    """The final block with any of the pieces of `resclip.methods.pieces.REPAIRS`; see there what each does.

    The order: outliers are filled, tokens averaged, then attention (the base's maps with SFR, averaged with the
    similarity branch, then RCS), [CLS] added, the result averaged, and the streams summed. Outliers and similarities
    are found once, whatever SFR's passes.
    """

    needs_trace = "repairs tokens by what earlier blocks hold"

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        depth, pieces = self.tower.depth, self.pieces
        aggregation, branch, stream = pieces.aggregation, pieces.branch, pieces.stream
        self.before = 0 if aggregation is None else aggregation.before_of(depth)
        """Block that is compared before the attention; 0 for none."""
        self.after = 0 if aggregation is None else aggregation.after_of(depth)
        """Block that is compared after the attention; 0 for none."""
        self.similarity = 0 if branch is None else branch.layer_of(depth)
        """Block that the similarity branch compares; 0 for none."""
        self.stream_layers = () if stream is None else stream.layers_of(depth)
        if self.kind != "attention_only" and pieces.patches is not None:
            raise ValueError(
                "PatchAttention adds [CLS] in place of the residual: final_block must be None or 'attention_only'; "
                f"got {self.kind!r}"
            )
        outliers = pieces.outliers
        if outliers is not None and outliers.detector == "salience" and not self.tower.has_cls:
            raise ValueError(
                "outliers detector 'salience' reads [CLS]'s attention, and this tower has no [CLS]: use 'lof' or 'norm'"
            )
        if pieces.heads is not None and self.correlation.scores not in ("kk", "qq", "qk"):
            raise ValueError(
                "HeadSelection takes a correlation with one score, 'kk', 'qq' or 'qk'; got "
                f"{self.correlation.scores!r}"
            )
        if (
            pieces.branch is not None or pieces.patches is not None
        ) and self.correlation.scores in ("none", "identity"):
            raise ValueError(
                f"patches that attend to patches need a score, and correlation {self.correlation.scores!r} has none: "
                "use another base or correlation"
            )

    @property
    def streams(self) -> int:  # type: ignore[override]
        return 1 if self.pieces.stream is None else 2

    @property
    def kept_tokens(self) -> int:
        compared = {self.before, self.similarity, self.after} - {0}
        # Of the last block but one q, k and v are kept where they tell outliers.
        outliers = self.pieces.outliers
        last = 5 if outliers is not None and outliers.detector == "salience" else 0
        return len(compared) + last + (self.pieces.stream is not None)

    def trace(self, pixels: Tensor, grid: tuple[int, int]) -> RepairTrace:
        return RepairTrace(self, pixels, grid)

    def make_traced_inputs(self, block: Any, tokens: Tensor, trace: Trace) -> RepairInputs:
        if not isinstance(trace, RepairTrace):
            raise TypeError("expected what token repair keeps of the blocks before")
        grid, pieces = trace.grid, self.pieces
        skip = int(self.tower.has_cls)
        patches = tokens[:, skip:]
        outliers = None
        if pieces.outliers is not None:
            last = None if trace.last is None else (trace.last.query, trace.last.key)
            outliers = find_outliers(pieces.outliers, patches, last)

        def filled(patches: Tensor) -> Tensor:
            if outliers is None or pieces.outliers is None:
                return patches
            keep = pieces.outliers.isolated == "keep"
            return fill(patches, outliers, grid, keep_isolated=keep)

        patches = filled(patches)
        if self.before:
            compared = filled(trace.outputs[self.before][:, skip:])
            patches = self.average(compared, patches)
        similar = filled(trace.outputs[self.similarity][:, skip:]) if self.similarity else None
        after = trace.outputs[-1][:, skip:] if self.after else None
        sets, scores = [torch.cat([tokens[:, :skip], patches], dim=1)], [True]
        if trace.stream is not None and pieces.stream is not None:
            sets.append(trace.stream)
            scores.append(pieces.stream.scores)
        streams = self.make_streams(block, sets, scores, grid, similar)
        return RepairInputs(
            streams=tuple(streams),
            grid=grid,
            cross_layers=tuple(trace.cross_layers),
            outliers=outliers,
            similar=similar,
            after=after,
        )

    def average(self, compared: Tensor, patches: Tensor) -> Tensor:
        """The patches (B, n, D), each averaged with those that are alike in `compared`."""
        if self.pieces.aggregation is None:
            return patches
        return similarity_aggregation(
            compared,
            patches,
            threshold=self.pieces.aggregation.threshold,
            implementation=self.implementation,
        )

    def make_streams(
        self,
        block: Any,
        sets: Sequence[Tensor],
        scores: Sequence[bool],
        grid: tuple[int, int],
        similar: Tensor | None,
    ) -> list[Stream]:
        """Project each set of tokens (B, L, D), all of them as one batch.

        Args:
            block: the final block's modules.
            sets: one for each stream.
            scores: whether the base's own map counts in it.
            grid: (h, w).
            similar: (B, n, D), what the similarity branch compares.
        """
        alone, skip = self.pieces.patches is not None, int(self.tower.has_cls)
        # A tower with rotary positions turns the patches behind [CLS], so that all are projected.
        with fast_linear():
            normed = self.tower.norm(block, torch.cat(list(sets)))
            query, key, value = self.tower.project_qkv(block, normed, grid)
        if alone:
            normed = normed[:, skip:]
            query, key, value = query[:, :, skip:], key[:, :, skip:], value[:, :, skip:]
        projections = self.project(normed, query, key, value)
        if self.pieces.alignment is not None:
            query, key = self.align(query, key, 0 if alone else skip)
        branches: Sequence[Tensor | None] = [None] * len(sets)
        if similar is not None and self.pieces.branch is not None and self.pieces.heads is None:
            # One map for the heads of all streams.
            parts = value.unflatten(0, (len(sets), -1)).unbind()
            branches = proxy_attention(
                similar.mT.unflatten(2, grid),
                torch.cat(parts, dim=1),
                grid=grid,
                beta=1.0,
                gamma=self.pieces.branch.sharpness,
                cut=self.pieces.branch.cut,
                implementation=self.implementation,
            ).chunk(len(sets), dim=1)
        images = sets[0].shape[0]
        streams = []
        for number, tokens in enumerate(sets):
            own = slice(number * images, (number + 1) * images)
            streams.append(
                Stream(
                    tokens[:, skip:] if alone else tokens,
                    tokens[:, :skip] if alone and skip else None,
                    query[own],
                    key[own],
                    value[own],
                    tuple(projection[own] for projection in projections),
                    branches[number],
                    scores[number],
                    self.select_heads(query[own], key[own], similar, grid),
                )
            )
        return streams

    def select_heads(
        self, query: Tensor, key: Tensor, similar: Tensor | None, grid: tuple[int, int]
    ) -> SelectedHeads | None:
        """A stream's `HeadSelection`; None without one."""
        if self.pieces.heads is None:
            return None
        parts = {"q": query, "k": key}
        left, right = (parts[name] for name in tuple(self.correlation.scores))
        return SelectedHeads(
            (left, right),
            similar,
            self.pieces.branch,
            self.base_options(grid, projects=False),
            self.pieces.heads.kept,
        )

    def run(
        self, inputs: Any, feedback: SemanticFeedback | None, cross_layer: Tensor | None
    ) -> Pass:
        """One pass: every stream's attention and the rest of the block, and their sum."""
        tower, block = self.tower, self.tower.block_list[-1]
        results, kept = [], []
        for number, stream in enumerate(inputs.streams):
            earlier = None if cross_layer is None else cross_layer[number]
            attended, residual = self.attend_stream(inputs, stream, feedback, earlier)
            if residual is not None:
                kept.append(residual)
            with fast_linear():
                tokens = self.finish(block, stream.tokens, tower.project_out(block, attended))
            if stream.cls is not None and self.pieces.patches is not None:
                tokens = tokens + self.pieces.patches.weight_of(tower.depth) * stream.cls
            results.append(tokens)
        total = functools.reduce(torch.add, results)
        if inputs.after is not None:
            # It is linear: the sum is averaged once.
            count = inputs.after.shape[1]
            patches = self.average(inputs.after, total[:, -count:])
            total = torch.cat([total[:, :-count], patches], dim=1)
        return Pass(total, torch.stack(kept) if kept else None, feedback)

    def attend_stream(
        self,
        inputs: RepairInputs,
        stream: Stream,
        feedback: SemanticFeedback | None,
        cross_layer: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """A stream's attention with SFR, similarity branch and RCS: (B, A, L, d), and A_c·v for the next pass."""
        if stream.selected is not None:
            attended = stream.selected.attend(stream.value, feedback)
        elif stream.scores:
            attended = self.attend_scores(stream, inputs.grid, feedback)
            if stream.branch is not None:
                attended = (attended + stream.branch) / (self.map_rows + 1)
        elif stream.branch is not None:
            attended = stream.branch
        else:
            raise ValueError("expected a stream with scores, or a similarity branch")
        if self.rcs is None:
            return attended, None
        if cross_layer is None:
            cross_layer = self.cross_layer(inputs, stream.value)
        return self.with_rcs(attended, cross_layer), cross_layer

    @property
    def map_rows(self) -> int:
        """What rows of the base's map add to."""
        return len(self.correlation.scores.split("+"))

    def attend_scores(
        self, stream: Stream, grid: tuple[int, int], feedback: SemanticFeedback | None
    ) -> Tensor:
        """The base's map with SFR: (B, A, L, d)."""
        return residual_attention(
            stream.query,
            stream.key,
            stream.value,
            self.base_options(grid, bool(stream.projections)),
            projections=stream.projections,
            feedback=feedback,
            implementation=self.implementation,
        ).output

    def cross_layer(self, inputs: RepairInputs, value: Tensor) -> Tensor:
        """A_c·v: (B, A, L, d).

        Where patches attend to patches alone, A_c keeps their rows and columns without the outliers' columns, and each
        row is divided by its sum.
        """
        return cross_layer_values(
            inputs.cross_layers,
            value,
            inputs.grid,
            self.implementation,
            None if self.pieces.patches is None else inputs.outliers,
            patches_alone=self.pieces.patches is not None,
        )


def cross_layer_values(
    cross_layers: Sequence[tuple[Tensor, Tensor]],
    value: Tensor,
    grid: tuple[int, int],
    implementation: Any,
    left_out: Tensor | None = None,
    *,
    patches_alone: bool,
) -> Tensor:
    """Ã_c·v of a method whose map has no [CLS], or A_c·v of one that has it: like `value`.

    Args:
        cross_layers: (q, k) of the middle blocks, (B, A, L, d) each.
        value: (B, A, n, d) of patches alone, or (B, A, L, d).
        grid: (h, w).
        implementation: of the op.
        left_out: (B, n) bool, patches that nothing is gathered from; None for none.
        patches_alone: whether rows and columns of [CLS] are left out of A_c, and each row divided by its sum.
    """

    def gather(values: Tensor) -> Tensor:
        averaged = residual_attention(
            cross_layers[0][0],
            cross_layers[0][1],
            values,
            grid=grid,
            correlation="identity",
            cross_layers=cross_layers,
            implementation=implementation,
        ).cross_layer
        if averaged is None:
            raise ValueError("RCS needs at least one layer")
        return averaged

    if not patches_alone:
        return gather(value)
    skip = cross_layers[0][0].shape[2] - value.shape[2]
    if not skip and left_out is None:
        return gather(value)
    present = torch.ones_like(value)
    if left_out is not None:
        present = present * (~left_out)[:, None, :, None]
    ends = (0, 0, skip, 0)
    values = torch.nn.functional.pad(value * present, ends)
    shares = gather(torch.nn.functional.pad(present, ends))[:, :, skip:]
    tiny = torch.finfo(torch.float32).tiny if value.dtype != torch.float16 else 1e-7
    return gather(values)[:, :, skip:] / shares.clamp_min(tiny)

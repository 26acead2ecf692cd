"""`ResidualBlock`: the final block of a method, in place of the final block of a CLIP model's own image tower."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from resclip.encoder.dense_encoder import check_pixels, check_text
from resclip.encoder.final_block import FinalBlock, FinalInputs
from resclip.encoder.method_blocks import make_final_block
from resclip.methods.catalogue import (
    RCS,
    SFR,
    FinalBlockKind,
    Method,
    ProxyAttention,
    check_no_steps,
    find_method,
)
from resclip.methods.correlation import Correlation
from resclip.models import Tower, adapt, unwrap
from resclip.models.tower import StoodIn, constant_in_graphs, first_argument, true_type
from resclip_kernels import (
    Implementation,
    QueryKeyRecorder,
    deterministic_attention,
)

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle


@dataclass
class Run:
    """What is kept of one forward pass of the model until its final block has run."""

    pixels: Tensor
    """(B, 3, H, W), normalised."""
    entrance: nn.Module
    """The module that they came to: the tower's own, or a replica of it on another device."""
    kept: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    """By number of the block: the "input" of its attention, or "query" and "key" as the model projected them."""


class Runs:
    """The forward passes that are on their way, one for each thread. A copy or a pickle has none."""

    def __init__(self) -> None:
        self.local = threading.local()

    def __deepcopy__(self, memo: dict[int, Any]) -> Runs:
        return Runs()

    def __reduce__(self) -> tuple[type[Runs], tuple[()]]:
        return Runs, ()

    def current(self) -> Run | None:
        """This thread's forward pass."""
        run: Run | None = getattr(self.local, "run", None)
        return run

    def enter(self, entrance: nn.Module) -> None:
        """A tower begins in this thread."""
        self.local.entrance = entrance

    def begin(self, pixels: Tensor, tower: nn.Module) -> None:
        """Begin this thread's forward pass, of the `tower` if none is known to have begun."""
        # The hook on the patch embedding knows the tower alone; what `enter` was told may be a replica of it.
        self.local.run = Run(pixels, getattr(self.local, "entrance", None) or tower)

    def take(self) -> Run | None:
        """This thread's forward pass, which is forgotten here."""
        run = self.current()
        self.local.run = self.local.entrance = None
        return run

    def keep(self, block: int, part: str, tensor: Any) -> None:
        """Keep a part of this thread's forward pass."""
        run = self.current()
        if run is not None and isinstance(tensor, Tensor):
            run.kept[block, part] = tensor


@dataclass(frozen=True)
class KeepInput:
    """A hook that keeps the input of a block's attention."""

    runs: Runs
    block: int
    only_listens: ClassVar[bool] = True

    def __call__(self, module: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        self.runs.keep(self.block, "input", first_argument(args, keywords))


@dataclass(frozen=True)
class KeepOutput:
    """A hook that keeps what a layer puts out."""

    runs: Runs
    block: int
    part: str

    def __call__(self, module: nn.Module, args: Any, keywords: Any, output: Any) -> None:
        self.runs.keep(self.block, self.part, output)


class BlockRecorder(QueryKeyRecorder):
    """A `QueryKeyRecorder` that keeps q and k with the forward pass they belong to."""

    runs: Runs
    block: int

    def keep(self, query: Tensor, key: Tensor) -> None:
        self.runs.keep(self.block, "query", query)
        self.runs.keep(self.block, "key", key)

    def recorded(self) -> tuple[Tensor, Tensor]:
        # As if there were no `query` and `key`: torch.jit.trace asks every module for all that it has.
        raise AttributeError("a BlockRecorder keeps q and k with their forward pass")


class ResidualBlock(nn.Module):
    """The whole final block of a method, ResCLIP (arXiv 2411.15851) or another, as a drop-in for a CLIP image tower.

        block = ResidualBlock.from_tower(visual, method="resclip", text=text)
        visual.transformer.resblocks[-1] = block
        pooled, tokens = visual(pixels)  # with visual.output_tokens = True

    The model's own forward pass now gives the tokens of the method, the same as `DenseEncoder` within rounding:
    `tokens @ visual.proj` are its patches. Middle blocks, norms and projections run as the model runs them, with
    whatever was done to them. q and k of the middle blocks (for RCS) and the pixels (for SFR) are taken as they pass
    by; nothing of an image stays after its forward pass, and threads do not see each other's. (Where only a part of
    the model is called, such as `forward_intermediates(stop_early=True)`, it stays until the thread's next pass.) The
    pixels are those that come to the patch embedding, as for `DenseEncoder`: before hooks on it change them.

    Parameters and state dict of the tower stay as they are: the block holds the modules of the one that it replaces.
    It follows `.to`, `.half`, `copy.deepcopy`, pickling, `torch.compile` and `DataParallel`. What is done to the model
    later takes effect, or is refused at the next forward pass where the block would ignore it; `Tower.check_host` says
    what it cannot see, and a compiled graph holds what the model was when it was compiled. The model takes images of
    the sizes that it takes without the block; at another size than the trained one its own way to resize position
    embeddings counts, not `DenseEncoder`'s. Gradients flow wherever the model around the block has them, through the
    attention and not through SFR's labels; in training mode attention dropout is refused, and gradient checkpointing
    of the final block does not work.

    Attributes:
        text: (Q, E) unit rows, what SFR segments by; may be set anew between calls. None without SFR.
    """

    def __init__(self, final: FinalBlock, text: Tensor | None = None) -> None:
        """Use `from_tower`; the model is prepared here, and `undo` takes that back."""
        nn.Module.__init__(self)  # And not that of the model's own block, which is a base as well.
        original = final.tower.block_list[-1]
        self._method = final
        self._runs = Runs()
        self.text = text
        # What was replaced is kept in tuples, which nn.Module does not look into: its modules are this block's own.
        self._original = (original,)
        take_state(self, original)
        take_hooks(self, original)
        self._replaced: tuple[tuple[Any, nn.Module, BlockRecorder], ...] = ()
        self._hooks: list[RemovableHandle] = []
        self._depth = final.tower.depth
        self._watched: list[StoodIn] = []
        try:
            self.listen()
            self.watched()
        except BaseException:
            self.undo()
            raise

    @classmethod
    def from_tower(
        cls,
        visual: nn.Module,
        method: str | Method = "resclip",
        text: Tensor | None = None,
        *,
        rcs: RCS | None = None,
        sfr: SFR | None = None,
        final_block: FinalBlockKind | None = None,
        neighbourhood_std: float = 5.0,
        correlation: Correlation | str | None = None,
        proxy: Callable[[Tensor], Tensor] | None = None,
        proxy_attention: ProxyAttention | None = None,
        implementation: Implementation | str = Implementation.AUTO,
    ) -> ResidualBlock:
        """The final block of a method, for the tower whose final block it will replace.

        One that was made from the tower before, and not put in place, is undone.

        Args:
            visual: an image tower or a CLIP model, see `resclip.models.adapt`.
            method: a base with or without "+rcs" and "+sfr", or "resclip"; or a `Method`.
            text: (Q, E) unit rows for a method with SFR; may be set later as `block.text`.
            rcs, sfr: instead of the method's own; a method without the module gets it.
            final_block, neighbourhood_std, correlation, proxy, proxy_attention, implementation: as in `DenseEncoder`.

        Raises:
            TypeError: a tower that cannot be rebuilt, or whose final block was changed (the message names what).
            ValueError: a name or option that does not fit, or text for a method without SFR.
        """
        chosen = find_method(method)
        check_no_steps(chosen, "a ResidualBlock")
        tower = copy.copy(adapt(visual))  # It remembers the model as it is now.
        final = make_final_block(
            tower,
            chosen.base,
            chosen.rcs if rcs is None else rcs,
            chosen.sfr if sfr is None else sfr,
            neighbourhood_std,
            chosen.final_block if final_block is None else final_block,
            implementation,
            correlation=chosen.correlation if correlation is None else correlation,
            proxy=proxy,
            proxy_attention=chosen.proxy if proxy_attention is None else proxy_attention,
            pieces=chosen.pieces,
        )
        obstacle = final.needs_trace or earlier_pieces(final)
        if obstacle:
            raise ValueError(
                f"a ResidualBlock stands in for the final block alone, and base {final.base.name!r} {obstacle}: use "
                "DenseEncoder"
            )
        if final.correlation.blocks > 1:
            raise ValueError(
                "a ResidualBlock stands in for the final block alone, and correlation blocks is "
                f"{final.correlation.blocks}: use blocks=1, or DenseEncoder"
            )
        forget_unplaced(tower)
        tower.remember()
        last = tower.block_list[-1]
        tower.check_host([*tower.within([last]), *attentions_read(final, {})])
        tower.check_result(layers_read(final))
        return block_type(true_type(last))(final, text)

    @property
    def text(self) -> Tensor | None:
        """(Q, E) unit rows, what SFR segments by."""
        return self._text

    @text.setter
    def text(self, text: Tensor | None) -> None:
        if text is not None:
            if self._method.sfr is None:
                raise ValueError(
                    "this method has no SFR, which alone reads text: leave text out, or use a method with SFR"
                )
            check_text(text, self._method.tower.output_dim)
        self._text = text

    def forward(self, tokens: Tensor, *args: Any, **keywords: Any) -> Any:
        """What the replaced block would return, for its input; further arguments are the model's own, and not used.

        Raises:
            ValueError: the pixels of these tokens did not come through the tower, text is missing, or an argument masks
                tokens.
        """
        run = self._runs.take()
        check_arguments(args, keywords)
        if run is None:
            if not self._hooks:
                raise ValueError(
                    "this ResidualBlock was undone, by undo() or because another one was made from the tower before "
                    "it was placed: make another block"
                )
            raise ValueError(
                "no pixels have come through the tower that this ResidualBlock was made from: call that tower with "
                "pixels, not the block with tokens, and without gradient checkpointing; another tower needs a block of "
                "its own"
            )
        method = self._method.on(run.entrance)
        tower, pixels = method.tower, run.pixels
        if tower.depth != self._depth or tower.block_list[-1] is not self:
            raise ValueError(
                "this ResidualBlock must be the final block, as it is, of the tower that it was made from: put it at "
                f"index -1 of its {self._depth} blocks, in place of the one there, and wrap the whole model rather "
                "than the block"
            )
        check_pixels(pixels, tower)
        if method.sfr is not None:
            check_text(self._text, tower.output_dim)
        self.check_model()
        if self.training:
            check_dropout(tower.attention(self))
        text = None if self._text is None else self._text.to(tokens.device)
        inputs = self.make_inputs(method, run, tower.block_input(tokens))
        result = method.run_passes(inputs, pixels, text).tokens
        if inputs.features is not None and tower.has_cls:
            result = torch.cat([attended_cls(tower, self, inputs), result], dim=1)
        return tower.block_output(self._original[0], result)

    @constant_in_graphs
    def check_model(self) -> None:
        """TypeError for a model that was changed since in a way that this block would not notice."""
        tower = self._method.tower
        placed = tower.block_list[-1]  # This block, or the one that it is a replica of.
        tower.check_host(placed.watched())

    def watched(self) -> list[StoodIn]:
        """What has to stay as it was: all that this block does in place of the model."""
        if not self._watched:
            self._watched = self.watch()
        return self._watched

    def watch(self) -> list[StoodIn]:
        """What `watched` gives, as it is now."""
        method, tower, (original,) = self._method, self._method.tower, self._original
        last = tower.remembered[original]
        # Hooks on the block take effect, since this block is called instead.
        watched = [replace(last, may_have_hooks=True)]
        watched.append(
            replace(
                tower.describe(self, last.path, last.children), is_known=True, may_have_hooks=True
            )
        )
        watched += tower.within([tower.attention(original)])
        watched += tower.within(tower.head_parts() if method.sfr else [])
        attentions: dict[nn.Module, nn.Module] = {
            recorder: attention for _, attention, recorder in self._replaced
        }
        watched += attentions_read(method, attentions)
        for recorder, attention in attentions.items():
            one = tower.describe(recorder, tower.remembered[attention].path, {})
            watched.append(replace(one, is_known=True, may_have_hooks=True))
        return watched

    def listen(self) -> None:
        """Put hooks where pixels, and q and k of middle blocks, pass by."""
        tower = self._method.tower
        self._hooks += [
            tower.entrance.register_forward_pre_hook(self.enter),
            # Before the hooks that are there, which may change the pixels.
            tower.patch_embedding.register_forward_pre_hook(self.take_pixels, prepend=True),
            tower.entrance.register_forward_hook(self.leave, always_call=True),
        ]
        compared = self._method.correlation.layer
        if compared is not None and compared < tower.depth:
            self._hooks.append(self.keep_input(compared))
        for layer in self._method.layers:
            self.record(layer)

    def enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """A hook: the tower, or a replica of it on another device, begins."""
        self._runs.enter(module)

    def leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """A hook: the tower has ended, with or without this block in its place."""
        self._runs.take()

    def take_pixels(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """A hook: pixels come to the patch embedding, by whichever of the model's ways."""
        self._runs.begin(args[0], self._method.tower.entrance)
        if not torch.compiler.is_compiling():
            # Behind the hooks that were added since, which may change what these are to keep.
            for handle in self._hooks[3:]:
                hooks = handle.hooks_dict_ref()
                if hooks is not None:
                    hooks.move_to_end(handle.id)

    def keep_input(self, layer: int) -> RemovableHandle:
        """Keep the input of a middle block's attention."""
        tower = self._method.tower
        attention = tower.attention(tower.block_list[layer - 1])
        return attention.register_forward_pre_hook(KeepInput(self._runs, layer), with_kwargs=True)

    def record(self, layer: int) -> None:
        """Keep q and k of a middle block, as the model projects them; where it shows none, what they come from."""
        tower = self._method.tower
        block = tower.block_list[layer - 1]
        attention, layers = tower.attention(block), tower.query_key_layers(block)
        if layers is not None:
            for part, module in zip(("query", "key"), layers, strict=True):
                hook = KeepOutput(self._runs, layer, part)
                self._hooks.append(module.register_forward_hook(hook, with_kwargs=True))
        elif type(attention) is nn.MultiheadAttention and "in_proj_weight" in dict(
            attention.named_parameters(recurse=False)
        ):
            # (One that is pruned or parametrised has this weight elsewhere.)
            recorder = BlockRecorder.from_attention(attention)
            recorder.runs, recorder.block = self._runs, layer
            take_hooks(recorder, attention)
            block.attn = recorder
            self._replaced += ((block, attention, recorder),)
        else:
            self._hooks.append(self.keep_input(layer))

    def __reduce_ex__(self, protocol: Any) -> Any:
        """For copies and pickles, which cannot find a class that `block_type` has made by its name."""
        (original,) = self._original
        # What is watched names classes as well; it is noted anew.
        state: dict[str, Any] = {**nn.Module.__getstate__(self), "_watched": []}
        return blank_block, (true_type(original),), state

    def undo(self) -> None:
        """Give the tower its own final block back, and take away what listened; a second call does nothing.

        What has become of the block's modules and parameters meanwhile stays.
        """
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        for block, attention, recorder in self._replaced:
            if block.attn is recorder:
                take_state(attention, recorder)
                block.attn = attention
        self._replaced = ()
        blocks = self._method.tower.block_list
        for number, block in enumerate(blocks):
            if unwrap(block) is self:
                take_state(self._original[0], self)
                blocks[number] = self._original[0]

    def query_key(
        self, tower: Tower, run: Run, layer: int, grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """q and k of a middle block in this forward pass, (B, A, L, d) each."""
        if (layer, "query") in run.kept:
            query, key = run.kept[layer, "query"], run.kept[layer, "key"]
            return tower.as_heads(query, grid), tower.as_heads(key, grid)
        block = tower.block_list[layer - 1]
        if (layer, "input") not in run.kept:
            raise ValueError(
                f"the attention of block {layer} did not run in this pass, or was replaced since this ResidualBlock "
                "was made: call the whole tower, with this block at index -1 of its blocks alone; if the attention was "
                "replaced, call undo() and make another block"
            )
        normed = tower.block_input(run.kept[layer, "input"])
        return tower.project_qkv(block, normed, grid)[:2]

    def make_inputs(self, method: FinalBlock, run: Run, tokens: Tensor) -> FinalInputs:
        """What the passes read: the block's input, and what was kept on the way to it."""
        tower = method.tower
        height, width = run.pixels.shape[2:]
        grid = tower.grid(height, width)
        if tokens.shape[1] != grid[0] * grid[1] + tower.has_cls:
            raise ValueError(
                f"an image of {height} × {width} pixels has {grid[0]} × {grid[1]} patches, and the block got "
                f"{tokens.shape[1]} tokens: call the tower that this ResidualBlock was made from, with all its patches"
            )
        cross_layers = [self.query_key(tower, run, layer, grid) for layer in method.layers]
        compared = None
        layer = method.correlation.layer
        if layer is not None and layer < tower.depth:
            normed = tower.block_input(run.kept[layer, "input"])
            compared = (normed, *self.query_key(tower, run, layer, grid))
        features = method.run_proxy(run.pixels)
        return method.make_inputs(self, tokens, grid, cross_layers, compared, features)

    def extra_repr(self) -> str:
        """The method, for `print(model)`."""
        method = self._method
        return f"base={method.base.name!r}, rcs={method.rcs}, sfr={method.sfr}"


def earlier_pieces(final: FinalBlock) -> str:
    """Why a method's pieces act before its final block; empty where none does."""
    if final.pieces.denoising is not None:
        return "denoises the tokens of every block"
    return "changes the attention of every block" if final.pieces.refocusing is not None else ""


def take_state(module: nn.Module, replaced: nn.Module) -> None:
    """Give a module the children, parameters, buffers and mode of the one that it replaces."""
    for kind in ("_modules", "_parameters", "_buffers"):
        vars(module)[kind].update(vars(replaced)[kind])
    module.training = replaced.training


def layers_read(method: FinalBlock) -> list[int]:
    """The numbers of the blocks before the final one that a method reads q and k of."""
    compared = method.correlation.layer
    layers = {*method.layers, *(() if compared is None else (compared,))}
    return sorted(layers - {method.tower.depth})


def attentions_read(method: FinalBlock, recorders: Mapping[nn.Module, nn.Module]) -> list[StoodIn]:
    """The attentions of these blocks, whose hooks take effect, since the model itself runs them.

    Args:
        method: that reads them.
        recorders: the attention behind each recorder that is in its place.
    """
    tower = method.tower
    attentions = [tower.attention(tower.block_list[layer - 1]) for layer in layers_read(method)]
    originals = [recorders.get(one, one) for one in attentions]
    # One that was put there later recorded nothing, which is told in `query_key`.
    return [replace(one, may_have_hooks=True) for one in tower.within(originals)]


def forget_unplaced(tower: Tower) -> None:
    """Undo a block that was made from this tower before, and never placed."""
    hooks = list(vars(tower.entrance)["_forward_pre_hooks"].values())
    for hook in hooks:
        block = getattr(hook, "__self__", None)
        if isinstance(block, ResidualBlock) and block not in tower.blocks:
            block.undo()


def take_hooks(module: nn.Module, replaced: nn.Module) -> None:
    """Give a module the forward hooks of the one that it replaces."""
    for name, hooks in vars(replaced).items():
        if name.startswith("_forward") and isinstance(hooks, dict):
            vars(module)[name] = hooks


BLOCK_TYPES: dict[type[nn.Module], type[ResidualBlock]] = {}
"""What `block_type` has made."""


def block_type(kind: type[nn.Module]) -> type[ResidualBlock]:
    """`ResidualBlock` as a subclass of the model's own block as well: models find their blocks by type."""
    if kind not in BLOCK_TYPES:
        bases, members = (ResidualBlock, kind), {"__doc__": ResidualBlock.__doc__}
        BLOCK_TYPES[kind] = type("ResidualBlock", bases, members)
    return BLOCK_TYPES[kind]


def blank_block(kind: type[nn.Module]) -> ResidualBlock:
    """A block without state, for a copy or an unpickled one."""
    made = block_type(kind)
    return made.__new__(made)


def attended_cls(tower: Tower, block: nn.Module, inputs: FinalInputs) -> Tensor:
    """(B, 1, D): [CLS] by CLIP's own attention, for ProxyCLIP, which gives patches alone."""
    attended = deterministic_attention(inputs.query[:, :, :1], inputs.key, inputs.value)
    return tower.project_out(block, attended)


def check_dropout(attention: Any) -> None:
    """ValueError for an attention that drops entries of its map while training, as no method does."""
    layer = getattr(attention, "attn_drop", None)
    share = attention.dropout if layer is None else layer.p
    if share:
        raise ValueError(
            f"a ResidualBlock has no attention dropout, and the tower's attention drops {share} while training: "
            "call .eval(), or set its dropout to 0"
        )


def check_arguments(args: tuple[Any, ...], keywords: Mapping[str, Any]) -> None:
    """ValueError if the model wants tokens masked, or attention maps back."""
    if keywords.get("output_attentions"):
        raise ValueError(
            "a ResidualBlock never holds an attention map, so it has none to return: call the model with "
            "output_attentions=False, or see DenseEncoder.attention"
        )
    masks = [name for name, value in keywords.items() if "mask" in name and value is not None]
    masks += ["a mask"] if any(isinstance(value, Tensor) for value in args) else []
    if masks:
        raise ValueError(
            f"in a ResidualBlock every token of an image attends to every other; got {masks[0]}: leave it out"
        )

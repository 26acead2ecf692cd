"""The interface to an image tower: embedding, blocks and head of a vision transformer, callable one by one."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any, ClassVar, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_modules
from torch.utils._pytree import tree_map

from resclip.models.resize_matrix import resize_planes_by_matrices
from resclip_kernels import FORKS, deterministic_attention

if TYPE_CHECKING:
    from typing_extensions import Self

P = ParamSpec("P")
R = TypeVar("R")

ADVICE = (
    "use a model with a plain vision transformer, "
    "such as 'ViT-B-16', 'ViT-L-14', 'ViT-B-16-SigLIP2' or 'EVA02-B-16'"
)


PLAIN_TYPES = (
    nn.Dropout,
    nn.Identity,
    nn.Linear,
    nn.ModuleDict,
    nn.ModuleList,
    nn.MultiheadAttention,
    nn.Sequential,
)
"""Modules that any family may have around its parts."""


DROP_IN = "resclip.encoder.residual_block"
"""The module that defines the drop-in and what it puts into a model."""
OF_DROP_IN = "of a ResidualBlock that was made from this tower (call its undo() first)"
"""What is said of these."""
LISTENERS = ("transformers.utils.output_capturing", "torch.utils.module_tracker")
"""Modules of libraries whose hooks change nothing: transformers leaves some that collect hidden states."""
HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
"""Where a module has its hooks, and torch, behind "_global", those on all modules: there is no public list of them."""
OF_EVERY_MODULE = frozenset(vars(nn.Module()))
"""Attributes that every module has; what counts of them is looked at by itself."""
MAY_CHANGE = frozenset(
    {
        "dropout",
        "p",
        "output_tokens",
        "grad_checkpointing",
        "gradient_checkpointing",
        "_compiled_call_impl",
    }
)
"""Settings of modules that change nothing of what the steps compute: dropout is for training alone."""
HALF = (torch.float16, torch.bfloat16)

RELEASED = "released"
POSITIONS: dict[str, dict[str, Any]] = {
    RELEASED: {"mode": "bicubic"},
    "bicubic": {"mode": "bicubic"},
    "antialias": {"mode": "bicubic", "antialias": True},
    "bilinear": {"mode": "bilinear"},
}
"""Ways to resize a position embedding, and how the interpolation is asked for them.

ResCLIP's released program hands over the scale factors (h + 0.1)/g and (w + 0.1)/g themselves; the others the size.
"""


class Functions(dict[type, dict[str, Any]]):
    """The functions of classes, by name. A copy shares them, and a pickle, which may not find them, has none."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Functions:
        return self

    def __reduce__(self) -> tuple[type[Functions], tuple[()]]:
        return Functions, ()


@dataclass(frozen=True, eq=False)
class StoodIn:
    """A module that the steps stand in for, as it was when the tower was made."""

    module: nn.Module
    path: str
    kind: type[nn.Module]
    is_known: bool
    children: dict[str, nn.Module]
    """Those that are stood in for as well, by name."""
    settings: dict[str, Any]
    """Its attributes that are neither modules nor tensors of the state dict."""
    names: frozenset[str]
    """Of all its attributes."""
    may_have_hooks: bool = False
    """Whether they take effect nevertheless."""


class Tower(nn.Module, ABC):
    """A vision transformer in steps.

    A plain forward pass of (B, 3, H, W) pixels is the following; the encoder replaces the last round of the loop:

        tokens = tower.embed(pixels)
        for block in tower.blocks:
            query, key, value = tower.project_qkv(block, tower.norm(block, tokens), tower.grid(H, W))
            heads = softmax(query keyᵀ / √d) value
            tokens = tower.feed_forward(block, tokens + tower.project_out(block, heads))
        features = tower.head(tokens)

    There are B images, L tokens of width D, A heads of width d, h × w patches, and outputs of width E. The wrapped
    modules are used as they are: nothing is copied or changed.

    A family of models is one subclass: it says where the parts are. The parts that `called_parts` lists are called as
    the model itself calls them, so whatever was done to them (adapters, hooks, quantised weights) takes effect. What
    lies around these parts, the steps stand in for: there only modules of `KNOWN_TYPES` without hooks are accepted, as
    they were when the tower was made, see `check_host`.
    """

    KNOWN_TYPES: ClassVar[tuple[type[nn.Module], ...]] = ()
    """Modules whose `forward` the steps stand in for, by exact type."""

    visual: Any
    """The wrapped model; `Any`, since attributes of an nn.Module have no types."""
    patch_size: tuple[int, int]
    """(height, width) of a patch in pixels."""
    trained_grid: tuple[int, int]
    """(h, w) that the position embedding was trained for."""
    heads: int
    """A, the number of attention heads."""
    output_dim: int
    """E, the width of the output and, where `text_obstacle` is None, of the text embeddings."""
    has_cls: bool
    """Whether the first token is [CLS]: L = h·w + has_cls."""
    text_obstacle: str | None = None
    """Why the output does not lie in a text's embedding space; None where it does."""
    batch_first: bool = True
    """Whether the model's own blocks take (B, L, D); else (L, B, D)."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual
        self.remembered: dict[nn.Module, StoodIn] = {}
        self.functions = Functions()

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            member = getattr(type(self), name, None)
            if not isinstance(member, property) or member.fget is None:
                raise
        # A property that found a part of the model without what it reads: its own error says so, nn.Module's does not.
        return member.fget(self)

    def on(self, entrance: nn.Module) -> Self:
        """The same steps where `entrance` is a replica of the model's own entrance, on another device."""
        if entrance is self.entrance:
            return self
        other = copy.copy(self)
        vars(other)["_modules"] = {"visual": entrance}
        return other

    @property
    @abstractmethod
    def block_list(self) -> Any:
        """The module that holds the blocks in order; callers only pass these to the methods below."""

    @property
    def entrance(self) -> nn.Module:
        """The module that the model calls with its normalised pixels, as first argument or `pixel_values`."""
        entrance: nn.Module = self.visual
        return entrance

    @abstractmethod
    def called_parts(self) -> Iterator[nn.Module]:
        """Every module that the steps call, and call as the model does."""

    def attention(self, block: Any) -> nn.Module:
        """The module of a block whose `forward` is replaced by `project_qkv`, attention and `project_out`."""
        attention: nn.Module = block.attn
        return attention

    @property
    @abstractmethod
    def patch_embedding(self) -> nn.Module:
        """The convolution that turns each patch into a token, perhaps with adapters around it."""

    @property
    def convolution(self) -> nn.Conv2d:
        """The convolution of `patch_embedding` itself."""
        convolution: Any = self.patch_embedding
        while "base_layer" in vars(convolution)["_modules"]:  # PEFT's name for it.
            convolution = convolution.base_layer
        return convolution  # type: ignore[no-any-return]

    @abstractmethod
    def embed(self, pixels: Tensor, position: str = RELEASED) -> Tensor:
        """(B, 3, H, W) normalised pixels → (B, L, D) tokens ready for block 1, [CLS] first.

        `position` is the way in which the position embedding is resized, see `resize_position_embedding`.
        """

    @abstractmethod
    def norm(self, block: Any, tokens: Tensor) -> Tensor:
        """LN1(tokens), the input of q, k and v: (B, L, D) → (B, L, D)."""

    @abstractmethod
    def project_qkv(
        self, block: Any, normed: Tensor, grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v of (B, L, D) normed tokens, each (B, A, L, d); rotary positions of `grid` are in q and k."""

    @abstractmethod
    def attention_output(self, block: Any, heads: Tensor) -> Tensor:
        """(B, A, L', d) attended values → (B, L', D): what the module of the attention puts out."""

    def project_out(self, block: Any, heads: Tensor) -> Tensor:
        """(B, A, L', d) attended values → (B, L', D), ready to be added to the residual stream."""
        return self.attention_output(block, heads)

    @abstractmethod
    def feed_forward(self, block: Any, tokens: Tensor) -> Tensor:
        """tokens + MLP(LN2(tokens)): (B, L', D) → (B, L', D)."""

    @abstractmethod
    def head(self, tokens: Tensor) -> Tensor:
        """(B, L', D) → (B, L', E): the final norm and projection of every token.

        Where the model pools its tokens first, each token is pooled alone, as if the image were that token.
        """

    def query_key_layers(self, block: Any) -> tuple[nn.Module, nn.Module] | None:
        """Two layers whose outputs, taken by `as_heads`, are a block's q and k; None where there are no such layers."""
        return None

    def as_heads(self, projected: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, A, L, d) of what one of `query_key_layers` has put out."""
        return projected

    def block_output(self, block: Any, tokens: Tensor) -> Any:
        """What the model's own block returns for the result (B, L, D)."""
        return tokens if self.batch_first else tokens.transpose(0, 1)

    def block_input(self, tokens: Tensor) -> Tensor:
        """What the model hands to its blocks, as (B, L, D)."""
        return tokens if self.batch_first else tokens.transpose(0, 1)

    @property
    def blocks(self) -> list[Any]:
        """The blocks in order."""
        return list(self.block_list)

    @property
    def depth(self) -> int:
        """M, the number of blocks."""
        return len(self.block_list)

    @property
    def width(self) -> int:
        """D, the width of the tokens."""
        return self.convolution.out_channels

    @property
    def device(self) -> torch.device:
        """The weights' device."""
        return self.convolution.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' dtype."""
        return self.convolution.weight.dtype

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(h, w) in patches of an image of height × width pixels; a remainder is dropped by the convolution."""
        return height // self.patch_size[0], width // self.patch_size[1]

    def check_layout(self) -> None:
        """Look at what the steps read, and remember it.

        Raises:
            AttributeError: something is not there.
        """
        convolution = self.convolution
        for read in ("stride", "kernel_size", "out_channels", "weight"):
            getattr(convolution, read)
        for block in self.blocks:
            self.query_key_layers(block)
        self.all_remembered()

    def remember(self) -> None:
        """Remember the modules that the steps stand in for as they are now, for `check_host`.

        Raises:
            AttributeError: the model is not laid out as the steps expect.
        """
        called = {id(module) for module in self.called_parts()}
        self.functions = Functions()
        self.remembered = {
            module: self.describe(module, path, stood_in_children(module, called))
            for name, root in self.host_parts()
            for path, module in stood_in_for(name, root, called)
        }

    def describe(self, module: nn.Module, path: str, children: dict[str, nn.Module]) -> StoodIn:
        """A module as it is now."""
        kind, state = true_type(module), vars(module)
        settings = {
            name: value
            for name, value in state.items()
            if name not in OF_EVERY_MODULE | MAY_CHANGE
            and not isinstance(value, Tensor)
            and (not name.startswith("_") or isinstance(value, FunctionType | MethodType))
        }
        self.class_functions(kind)
        known = self.knows(kind)
        return StoodIn(module, path, kind, known, children, settings, frozenset(state))

    def class_functions(self, kind: type) -> dict[str, Any]:
        """A class's functions by name, as they were when they were first asked for."""
        if kind not in self.functions:
            self.functions[kind] = functions_of(kind)
        return self.functions[kind]

    def within(self, parts: Collection[nn.Module]) -> list[StoodIn]:
        """What is remembered of these parts of the model and of all below them."""
        below = {module for part in parts for module in part.modules()}
        return [one for module, one in self.all_remembered().items() if module in below]

    def all_remembered(self) -> dict[nn.Module, StoodIn]:
        """What is remembered of all modules that the steps stand in for."""
        if not self.remembered:
            self.remember()
        return self.remembered

    def check_host(self, where: Iterable[StoodIn] | None = None) -> None:
        """Refuse a model that was changed in a way which the steps would not notice, before or since they were made.

        It takes less than a tenth of a millisecond, since every forward pass begins with it, and sees what is on the
        modules and on their classes. It does not see functions replaced in a library (such as torch.nn.functional's,
        or transformers' attention functions) after the tower was made, nor what changes within an object that is a
        module's setting, such as a configuration.

        Args:
            where: what to look at; None: all that the steps stand in for.

        Raises:
            TypeError: names the module and what is on it.
            RuntimeError: this thread cannot compute; see `resclip_kernels.forks`.
        """
        FORKS.check()
        where = self.all_remembered().values() if where is None else where
        hook = first_hook(vars(torch_modules), "_global")
        change = None if hook is None else f"torch has a hook on all modules ({name_of(hook)})"
        kinds = set()
        for one in where:
            change = change or change_of(one)
            kinds.add(one.kind)
        for kind in kinds:
            change = change or class_change(kind, self.class_functions(kind))
        if change is not None:
            raise TypeError(
                f"{change}, which a method that computes this part itself would ignore: take it away, merge it into "
                "the weights, put it on one of the layers inside, or make the method's encoder or block anew"
            )

    @torch.no_grad()
    def check_result(self, read: Collection[int] | None = None) -> None:
        """Run the model on an image of noise, and compare what each block makes of its input with what the steps make.

        It shows changes that leave no trace on the modules: methods replaced on a class, another attention function.
        The model is in eval mode meanwhile, and a block's weights of half precision are in float32 while it is
        compared, so that no other thread may run it.

        Args:
            read: look at the last block, and at the attention of the blocks of these numbers, which are read while
                the model runs them itself; None: at all blocks, and at what the first one is given.

        Raises:
            TypeError: they differ by more than rounding.
        """
        if self.device.type == "meta":
            return
        try:
            self.compare(read)
        except AttributeError as error:
            raise TypeError(explain_layout(self.visual, error)) from error

    def compare(self, read: Collection[int] | None) -> None:
        """What `check_result` does, where a part that the steps read and that is not there is an AttributeError."""
        pixels, depth = self.noise(), self.depth
        numbers = range(1, depth + 1) if read is None else [depth]
        blocks = {number: self.block_list[number - 1] for number in numbers}
        attentions = {number: self.attention(self.block_list[number - 1]) for number in read or ()}
        training = [module for module in self.visual.modules() if module.training]
        calls: dict[nn.Module, tuple[Any, Any]] = {}
        results: dict[nn.Module, Any] = {}
        hooks = []
        for module in (*blocks.values(), *attentions.values()):
            hooks += [
                module.register_forward_pre_hook(
                    lambda module, *call: calls.update({module: call}), with_kwargs=True
                ),
                module.register_forward_hook(
                    lambda module, _, output: results.update({module: output})
                ),
            ]
        try:
            self.visual.eval()
            self.entrance(pixels)
            for hook in hooks:
                hook.remove()
            silent = [number for number, block in blocks.items() if block not in calls]
            if silent:
                raise TypeError(
                    f"the model's forward did not run its block {silent[0]}, which a method would: look for a forward "
                    "that was replaced"
                )
            if read is None:
                given = first_argument(*calls[blocks[1]])
                self.check_equal("embedding", self.embed(pixels), given)
            for number, block in blocks.items():
                self.check_block(number, block, calls[block], results[block])
            for number, attention in attentions.items():
                args, keywords = calls[attention]
                # Its own forward alone: hooks on it take effect in the model.
                expected = attention.forward(*args, **keywords)
                tokens = self.block_input(first_argument(args, keywords))
                block = self.block_list[number - 1]
                came = self.attention_output(block, self.attend(block, tokens))
                self.check_equal(f"attention of block {number}", came, expected)
        finally:
            for hook in hooks:
                hook.remove()
            for module in training:
                module.training = True

    def attend(self, block: Any, normed: Tensor) -> Tensor:
        """The heads' results (B, A, L, d) for an image of the trained size."""
        return deterministic_attention(*self.project_qkv(block, normed, self.trained_grid))

    def check_block(self, number: int, block: Any, call: tuple[Any, Any], output: Any) -> None:
        """TypeError unless the steps add to a block's input what the block itself added."""

        def both(args: Any, keywords: Any) -> tuple[Tensor, Any, Tensor]:
            given = first_argument(args, keywords)
            tokens = self.block_input(given)
            heads = self.attend(block, self.norm(block, tokens))
            came = self.feed_forward(block, tokens + self.project_out(block, heads))
            return came, block(*args, **keywords) if wide else output, given

        wide = self.dtype in HALF
        if wide:
            try:
                # Rounding in half precision would hide changes of some per cent.
                self.check_equal(f"block {number}", *in_float32(block, both, call))
                return
            except RuntimeError:
                wide = False  # Something in it that is not in its state dict is in half precision as well.
        came, expected, given = both(*call)
        self.check_equal(f"block {number}", came, expected, None if self.dtype in HALF else given)

    def check_equal(
        self, part: str, came: Tensor, expected: Any, given: Tensor | None = None
    ) -> None:
        """TypeError unless the steps' result is the model's own, up to rounding of what was added to `given`."""
        # Layers of transformers 4 and attentions return a tuple.
        expected = self.block_input(expected if isinstance(expected, Tensor) else expected[0])
        # Half precision rounds by up to some per cent of this; float32 by 1e-6, and by less than 1e-3 in TF32.
        limit = 0.05 if came.dtype in HALF else 2e-3
        error = float("inf")
        if expected.shape == came.shape:
            added = expected if given is None else expected - self.block_input(given)
            rounding = 1e-6 * expected.norm()
            error = ((came - expected).norm() / (added.norm() + rounding)).item()
        if not error <= limit:  # NaN is no less.
            raise TypeError(
                f"the model's {part} computes something else than that of a model of its kind ({error:.1%} off for an "
                "image of noise), which a method would ignore: look for methods, attention functions or settings that "
                "were replaced, or for weights that hold NaN"
            )

    def noise(self) -> Tensor:
        """(1, 3, H, W): an image of noise at the size that the model was trained for."""
        size = (
            side * patch for side, patch in zip(self.trained_grid, self.patch_size, strict=True)
        )
        generator = torch.Generator().manual_seed(0)
        return torch.randn(1, 3, *size, generator=generator).to(self.device, self.dtype)

    def head_parts(self) -> list[nn.Module]:
        """The modules behind the last block that the steps stand in for."""
        return []

    def host_parts(self) -> Iterable[tuple[str, nn.Module]]:
        """The model's image side by name: where `check_host` looks."""
        return [("visual", self.visual)]

    def knows(self, kind: type[nn.Module]) -> bool:
        """Whether the steps stand in for a module of this type, or may leave it out."""
        return kind in self.KNOWN_TYPES or kind in PLAIN_TYPES

    def embed_patches(self, pixels: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """The patches' tokens (B, h·w, D) before any position embedding, row by row, and (h, w)."""
        patches = self.patch_embedding(pixels)
        return patches.flatten(2).transpose(1, 2), (patches.shape[2], patches.shape[3])


def check_blocks(blocks: nn.Module) -> None:
    """TypeError unless this is torch's own list of blocks, which the steps go through, with the model's own blocks."""
    if not isinstance(blocks, (nn.ModuleList, nn.Sequential)):
        raise TypeError(
            f"the tower's blocks must be in an nn.ModuleList or nn.Sequential; this is an {type(blocks).__name__}: "
            "take the wrapper away"
        )
    if any(hasattr(block, "undo") for block in blocks):
        raise TypeError(
            "the tower's final block is a drop-in already: call undo() of the ResidualBlock first"
        )


def stood_in_for(name: str, module: nn.Module, called: set[int]) -> Iterator[tuple[str, nn.Module]]:
    """The module and those below it, by path, without the called ones and all that is below these."""
    waiting = [(name, module)]
    while waiting:
        path, one = waiting.pop()
        if id(one) not in called:
            yield path, one
            waiting += [
                (f"{path}.{child_name}", child)
                for child_name, child in reversed(stood_in_children(one, called).items())
            ]


def stood_in_children(module: nn.Module, called: set[int]) -> dict[str, nn.Module]:
    """Those of a module's children that the steps stand in for, by name."""
    if isinstance(module, nn.MultiheadAttention):
        return {}  # It reads its output layer's weights and never calls it, as do the steps.
    children = vars(module)["_modules"]
    if is_peft_attention(module):
        children = {"base_layer": children["base_layer"]}  # Its adapters are in the weights.
    return {
        name: child
        for name, child in children.items()
        # Parametrizations run wherever the weight is read.
        if child is not None and id(child) not in called and name != "parametrizations"
    }


def is_peft_attention(module: nn.Module) -> bool:
    """Whether this is PEFT's wrapper with LoRA adapters around an `nn.MultiheadAttention`."""
    kind = type(module)
    return kind.__name__ == "MultiheadAttention" and kind.__module__.startswith("peft.")


def has_loose_adapters(module: Any) -> bool:
    """Whether PEFT adds adapters to the weights only while its attention runs, or takes them off again then."""
    return bool(module.merged) == bool(module.disable_adapters)


def true_type(module: nn.Module) -> type[nn.Module]:
    """The type of a module, which `torch.nn.utils.parametrize` replaces by a subclass that it makes up."""
    kind = type(module)
    return kind.__bases__[0] if "parametrizations" in vars(module)["_modules"] else kind


def change_of(one: StoodIn) -> str | None:
    """What was done to a module that the steps stand in for, in words; None for nothing."""
    module = one.module
    state = vars(module)
    what = None
    if not one.is_known or (type(module) is not one.kind and true_type(module) is not one.kind):
        what = strangeness(module, is_known=False)
    if what is None and "forward" in state:
        what = "has its forward replaced"
    if what is None and not one.may_have_hooks and (hook := hook_of(module)) is not None:
        what = f"has a hook ({name_of(hook)})"
        if getattr(hook, "__module__", "") == DROP_IN:
            what = f"has a hook {OF_DROP_IN}"
    if what is not None:
        return f"{one.path} ({type(module).__name__}) {what}"
    for name, child in one.children.items():
        now = state["_modules"].get(name)
        if now is None:
            return f"{one.path}.{name} was taken away since the method was given to the model"
        if now is not child:
            what = strangeness(now) or "was put there since the method was given to the model"
            return f"{one.path}.{name} ({type(now).__name__}) {what}"
    for name, value in one.settings.items():
        if state.get(name, state) is not value and not is_same(state.get(name, state), value):
            what = f"has another {name} than when the method was given to the model"
            return f"{one.path} ({type(module).__name__}) {what}"
    if len(state) != len(one.names):  # As many names are, but for a rare swap, the same names.
        for name in state.keys() - one.names - MAY_CHANGE:
            if hasattr(type(module), name):
                return f"{one.path} ({type(module).__name__}) has its {name} replaced"
    return None


def strangeness(module: Any, is_known: bool = True) -> str | None:
    """What is strange about what a module is, in words; None for nothing."""
    if type(module).__module__ == DROP_IN:
        return f"is part {OF_DROP_IN}"
    if is_peft_attention(module):
        if has_loose_adapters(module):
            return "has LoRA adapters beside its weights (merge_adapter() of the PEFT model puts them in)"
        return None
    return None if is_known else "is of a type that is not known here"


def is_same(now: Any, then: Any) -> bool:
    """Whether two settings are equal; of other types than plain values only one object equals itself.

    A list of plain values is plain too: torch.export puts an equal one in its place.
    """
    plain = (bool, int, float, str, tuple)
    if type(now) is not type(then):
        return False
    if isinstance(now, list):
        return len(now) == len(then) and all(map(is_same, now, then))
    return isinstance(now, plain) and bool(now == then)


def functions_of(kind: type) -> dict[str, Any]:
    """A class's functions by name, without those that every module has; none of the drop-in, which is our own."""
    if kind.__module__ == DROP_IN:
        return {}
    names = [
        name
        for base in kind.__mro__
        if base not in nn.Module.__mro__
        for name, value in vars(base).items()
        if isinstance(value, FunctionType)
    ]
    return {name: getattr(kind, name) for name in names}


def class_change(kind: type, functions: dict[str, Any]) -> str | None:
    """What was done to a class's functions, in words; None for nothing."""
    for name, function in functions.items():
        if getattr(kind, name, None) is not function:
            return f"{kind.__name__}.{name} was replaced since the method was given to the model"
    return None


def constant_in_graphs(function: Callable[P, R]) -> Callable[P, R]:
    """The same function, which torch asks once while it compiles, and of which it leaves no trace in the graph.

    As `torch.compiler.assume_constant_result`, which would import the compiler: two seconds more at every start.
    """
    vars(function)["_dynamo_marked_constant"] = True
    return function


def first_argument(args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """The tokens that a block or an attention is called with."""
    return args[0] if args else keywords.get("hidden_states", keywords.get("query"))


def in_float32(module: nn.Module, function: Any, arguments: tuple[Any, Any]) -> Any:
    """A function's result on arguments, and with weights of a module, that are in float32 instead of half precision."""

    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, *args: Any) -> Any:
            return function(*args)

    def widen(value: Any) -> Any:
        return value.float() if isinstance(value, Tensor) and value.dtype in HALF else value

    holder = Holder()
    state = {**dict(holder.named_parameters()), **dict(holder.named_buffers())}
    wide = {name: widen(value) for name, value in state.items() if value.dtype in HALF}
    return torch.func.functional_call(holder, wide, tree_map(widen, arguments))


def name_of(hook: Any) -> str:
    """A hook's name, for messages."""
    return getattr(hook, "__qualname__", type(hook).__qualname__)


def hook_of(module: nn.Module) -> Any:
    """A hook on a module that may change what it gives, forwards or backwards; None where there is none."""
    return first_hook(vars(module))


def first_hook(state: dict[str, Any], prefix: str = "") -> Any:
    """A hook, among those of a module's or of torch's own attributes, that may change something; None for none."""
    for kind in HOOKS:
        for hook in state[prefix + kind].values():
            listens = getattr(hook, "only_listens", False)
            if not listens and not getattr(hook, "__module__", "").startswith(LISTENERS):
                return hook
    return None


def explain_layout(model: Any, error: BaseException) -> str:
    """One sentence on the module of a model that lacks an attribute, which the innermost of the errors names."""
    owner, missing = getattr(error, "obj", None), getattr(error, "name", None)
    modules = model.named_modules() if isinstance(model, nn.Module) else ()
    path = next((path for path, module in modules if module is owner), "") or "image tower"
    return (
        f"the model's {path} ({type(owner).__name__}) has no {missing!r}, which a model of its kind has there: take "
        f"away what was put around or in place of it, or merge it into the weights; else {ADVICE}"
    )


def resize_position_embedding(
    embedding: Tensor,
    trained: tuple[int, int],
    grid: tuple[int, int],
    *,
    has_cls: bool = True,
    position: str = RELEASED,
) -> Tensor:
    """(has_cls + trained patches, D) → (has_cls + grid patches, D), [CLS]'s row left alone; `position` of POSITIONS."""
    cls, patches = embedding[: int(has_cls)], embedding[int(has_cls) :]
    if torch.compiler.is_compiling() or torch.compiler.is_exporting():
        # One graph for any size: F.interpolate takes its factors as constants.
        planes = patches.unflatten(0, trained)
        resized = resize_planes_by_matrices(planes, grid, position, exact=position == RELEASED)
        return torch.cat([cls, resized.flatten(0, 1)])
    if grid == trained:
        return embedding
    planes = patches.unflatten(0, trained).permute(2, 0, 1).unsqueeze(0)
    size: dict[str, Any] = {"size": grid}
    if position == RELEASED:
        scale = [(new + 0.1) / old for new, old in zip(grid, trained, strict=True)]
        size = {"scale_factor": scale, "recompute_scale_factor": False}
    resized = F.interpolate(
        planes.float() if planes.dtype in (torch.float16, torch.bfloat16) else planes,
        align_corners=False,
        **size,
        **POSITIONS[position],
    )
    return torch.cat([cls, resized.flatten(2).squeeze(0).T.to(cls.dtype)])


def split_heads(tokens: Tensor, heads: int) -> Tensor:
    """(B, L, A·d) → (B, A, L, d)."""
    split: Tensor = tokens.unflatten(-1, (heads, -1)).transpose(1, 2)
    return split


def merge_heads(heads: Tensor) -> Tensor:
    """(B, A, L, d) → (B, L, A·d)."""
    return heads.transpose(1, 2).flatten(2)

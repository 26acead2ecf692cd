"""The interface to an image tower: embedding, blocks and head of a vision transformer, callable one by one."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resclip_kernels import deterministic_attention

if TYPE_CHECKING:
    from typing_extensions import Self

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
LISTENERS = ("transformers.utils.output_capturing",)
"""Modules of libraries whose hooks change nothing: transformers leaves some that collect hidden states."""


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
    lies around these parts, the steps stand in for: there only modules of `KNOWN_TYPES` without hooks are accepted, see
    `check_host`.
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
    def patch_embedding(self) -> nn.Conv2d:
        """The convolution that turns each patch into a token."""

    @abstractmethod
    def embed(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) normalised pixels → (B, L, D) tokens ready for block 1, [CLS] first."""

    @abstractmethod
    def norm(self, block: Any, tokens: Tensor) -> Tensor:
        """LN1(tokens), the input of q, k and v: (B, L, D) → (B, L, D)."""

    @abstractmethod
    def project_qkv(
        self, block: Any, normed: Tensor, grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v of (B, L, D) normed tokens, each (B, A, L, d); rotary positions of `grid` are in q and k."""

    @abstractmethod
    def project_out(self, block: Any, heads: Tensor) -> Tensor:
        """(B, A, L', d) attended values → (B, L', D), ready to be added to the residual stream."""

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
        return self.patch_embedding.out_channels

    @property
    def device(self) -> torch.device:
        """The weights' device."""
        return self.patch_embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' dtype."""
        return self.patch_embedding.weight.dtype

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(h, w) in patches of an image of height × width pixels; a remainder is dropped by the convolution."""
        return height // self.patch_size[0], width // self.patch_size[1]

    def check_host(self, part: nn.Module | None = None) -> None:
        """Refuse a model that was changed in a way which the steps would not notice.

        Args:
            part: where to look; None: in the whole image side.

        Raises:
            TypeError: names the module and what is on it.
        """
        if torch.compiler.is_compiling():
            return  # A graph is made for one state of the model, which was checked before.
        called = {id(module) for module in self.called_parts()}
        for name, root in self.host_parts() if part is None else [("", part)]:
            for path, module in stood_in_for(name, root, called):
                change = change_of(module, self.knows(true_type(module)))
                if change is not None:
                    raise TypeError(
                        f"{self.path_to(part)}{path} ({type(module).__name__}) {change}, which a method that computes "
                        "this part itself would ignore: take it away, merge it into the weights, or put it on one of "
                        "the layers inside"
                    )

    def path_to(self, part: nn.Module | None) -> str:
        """Where a part of the model is; empty for None."""
        for name, root in self.host_parts():
            for path, module in root.named_modules():
                if module is part:
                    return f"{name}.{path}"
        return ""

    @torch.no_grad()
    def check_result(self, *, final_block: bool = False) -> None:
        """Run the model on an image of noise, and compare what each block makes of its input with what the steps make.

        It shows changes that leave no trace on the modules: methods replaced on a class, another attention function.
        The model is in eval mode meanwhile.

        Args:
            final_block: look at the last block alone; else at all, and at what the first one is given.

        Raises:
            TypeError: they differ by more than rounding.
        """
        if self.device.type == "meta":
            return
        pixels, depth = self.noise(), self.depth
        blocks = {depth: self.block_list[-1]} if final_block else dict(enumerate(self.blocks, 1))
        training = [module for module in self.visual.modules() if module.training]
        given: dict[nn.Module, Tensor] = {}
        result: dict[nn.Module, Any] = {}
        hooks = []
        for block in blocks.values():
            hooks += [
                block.register_forward_pre_hook(lambda block, args: given.update({block: args[0]})),
                block.register_forward_hook(
                    lambda block, _, output: result.update({block: output})
                ),
            ]
        try:
            self.visual.eval()
            self.entrance(pixels)
            if not final_block:
                self.check_equal("embedding", self.embed(pixels), given[blocks[1]])
            for number, block in blocks.items():
                tokens = self.block_input(given[block])
                heads = deterministic_attention(
                    *self.project_qkv(block, self.norm(block, tokens), self.trained_grid)
                )
                tokens = self.feed_forward(block, tokens + self.project_out(block, heads))
                self.check_equal(f"block {number}", tokens, result[block])
        finally:
            for hook in hooks:
                hook.remove()
            for module in training:
                module.training = True

    def check_equal(self, part: str, came: Tensor, expected: Any) -> None:
        """TypeError unless the steps' result is the model's own, up to rounding."""
        # Layers of transformers 4 return a tuple.
        expected = self.block_input(expected if isinstance(expected, Tensor) else expected[0])
        # Half precision rounds by up to some per cent of this, float32 by far less than any other formula differs.
        limit = 0.05 if self.dtype in (torch.float16, torch.bfloat16) else 1e-3
        error = float("inf")
        if expected.shape == came.shape:
            error = ((came - expected).norm() / expected.norm()).item()
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
        if id(one) in called:
            continue
        yield path, one
        if isinstance(one, nn.MultiheadAttention):
            continue  # It reads its output layer's weights and never calls it, as do the steps.
        # `named_children` would take most of the time of a check, which every forward pass begins with.
        children = vars(one)["_modules"]
        if is_peft_attention(one):
            children = {"base_layer": children["base_layer"]}  # Its adapters are in the weights.
        waiting += [
            (f"{path}.{child_name}", child)
            for child_name, child in reversed(children.items())
            # Parametrizations run wherever the weight is read.
            if child is not None and child_name != "parametrizations"
        ]


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


def change_of(module: nn.Module, is_known: bool) -> str | None:
    """What was done to a module that the steps stand in for, in words; None for nothing."""
    if type(module).__module__ == DROP_IN:
        return "belongs to a ResidualBlock that was made from this tower (place it, or call its undo())"
    if is_peft_attention(module):
        if has_loose_adapters(module):
            return "has LoRA adapters beside its weights (merge_adapter() of the PEFT model puts them in)"
    elif not is_known:
        return "is of a type that is not known here"
    if "forward" in vars(module):
        return "has its forward replaced"
    hook = hook_of(module)
    if getattr(hook, "__module__", "") == DROP_IN:
        return "has a hook of a ResidualBlock that was made from this tower (place it, or call its undo())"
    if hook is not None:
        return f"has a hook ({getattr(hook, '__qualname__', type(hook).__qualname__)})"
    return None


def hook_of(module: nn.Module) -> Any:
    """A hook on a module that may change what it gives, forwards or backwards; None where there is none."""
    state = vars(module)  # Modules have no public list of their hooks.
    for kind in ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks"):
        for hook in state[kind].values():
            listens = getattr(hook, "only_listens", False)
            if not listens and not getattr(hook, "__module__", "").startswith(LISTENERS):
                return hook
    return None


def resize_position_embedding(
    embedding: Tensor, trained: tuple[int, int], grid: tuple[int, int], *, has_cls: bool = True
) -> Tensor:
    """(has_cls + trained patches, D) → (has_cls + grid patches, D): bicubic, [CLS]'s row left alone.

    The scale factors (h + 0.1)/g and (w + 0.1)/g themselves go to the interpolation, as in ResCLIP's released program.
    """
    if grid == trained:
        return embedding
    cls, patches = embedding[: int(has_cls)], embedding[int(has_cls) :]
    planes = patches.unflatten(0, trained).permute(2, 0, 1).unsqueeze(0)
    scale = [(new + 0.1) / old for new, old in zip(grid, trained, strict=True)]
    resized = F.interpolate(
        planes.float() if planes.dtype in (torch.float16, torch.bfloat16) else planes,
        scale_factor=scale,
        mode="bicubic",
        align_corners=False,
        recompute_scale_factor=False,
    )
    return torch.cat([cls, resized.flatten(2).squeeze(0).T.to(cls.dtype)])


def split_heads(tokens: Tensor, heads: int) -> Tensor:
    """(B, L, A·d) → (B, A, L, d)."""
    split: Tensor = tokens.unflatten(-1, (heads, -1)).transpose(1, 2)
    return split


def merge_heads(heads: Tensor) -> Tensor:
    """(B, A, L, d) → (B, L, A·d)."""
    return heads.transpose(1, 2).flatten(2)

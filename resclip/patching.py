"""`patch`: gives a CLIP model a method for dense features, and takes it away again."""

from __future__ import annotations

from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, nn

from resclip.encoder.dense_encoder import DenseEncoder
from resclip.methods.catalogue import RCS, SFR, Method, check_no_steps, find_method
from resclip.methods.correlation import Correlation
from resclip.methods.presets import find_preset
from resclip_kernels import check_flag, check_type

if TYPE_CHECKING:
    from typing_extensions import Self

NAME = "encode_dense"


class Patched:
    """What `patch` returns: the method's encoder, and `undo`. As a context manager it undoes on leaving."""

    def __init__(self, model: nn.Module, encoder: DenseEncoder, training: set[nn.Module]) -> None:
        self.model: Any = model
        self.encoder = encoder
        self.training = training
        # Written past nn.Module.__setattr__, as neither parameter nor submodule, so that the state dict stays as it is.
        # A bound method, so that a deep copy of the model gets an encoder of its own.
        vars(model)[NAME] = self.encode_dense

    def encode_dense(
        self, pixels: Tensor, text: Tensor | None = None, normalize: bool = False
    ) -> Tensor:
        """The model's new method: features of every patch, in the space of `encode_text`.

        Args:
            pixels: (B, 3, H, W), as for `encode_image`, but of any size of at least one patch.
            text: (Q, E) unit rows, needed where the method has SFR.
            normalize: to unit length; spelled as in open_clip's `encode_image`.

        Returns:
            (B, h, w, E).
        """
        check_flag("normalize", normalize)
        patches = self.encoder(pixels, text).patches
        return F.normalize(patches, dim=-1) if normalize else patches

    def undo(self) -> None:
        """Remove `encode_dense` and restore the modules' training mode; a second call does nothing."""
        method = vars(self.model).get(NAME)
        if getattr(method, "__self__", None) is not self:
            return
        del vars(self.model)[NAME]
        for module in self.training:
            module.training = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.undo()


def patch(
    clip_model: nn.Module,
    method: str | Method = "resclip",
    *,
    preset: str | None = None,
    correlation: Correlation | str | None = None,
    rcs: RCS | None = None,
    sfr: SFR | None = None,
    proxy: Any = None,
    implementation: str = "auto",
    inference: bool = True,
) -> Patched:
    """Give an existing CLIP model a dense image tower: `clip_model.encode_dense(pixels, text)`.

    `encode_image`, `encode_text`, the parameters and the state dict stay as they are: the tower's own modules are run
    in another way, and the model gets one more method. A tower in training mode is in eval mode until it is undone.

        with resclip.patch(clip_model, method="naclip+rcs"):
            patches = clip_model.encode_dense(pixels)  # (B, h, w, E)

    Without `with`, it lasts until `.undo()` is called on what is returned.

    Args:
        clip_model: a CLIP model or image tower, see `resclip.models.adapt`.
        method, preset, correlation, rcs, sfr, implementation: as in `resclip.load`.
        proxy: for ProxyCLIP the vision model; see `DenseEncoder`.
        inference: False lets gradients flow, as in `DenseEncoder`.

    Raises:
        TypeError: any other model; it stays as it was, and in its mode.
        ValueError: an unknown name, an option that does not fit, or a model that is patched already.
    """
    check_type("clip_model", clip_model, nn.Module, "a CLIP model of open_clip or Hugging Face")
    if NAME in vars(clip_model):
        raise ValueError(
            "this model is patched already: call .undo() of what patch() returned, or leave its `with` block, first"
        )
    if hasattr(clip_model, NAME):
        raise ValueError(
            f"this model has a method {NAME!r} of its own, which patching would hide: use DenseEncoder"
        )
    chosen = find_method(method)
    check_no_steps(chosen, "a patched model")
    chosen = replace(
        chosen,
        rcs=chosen.rcs if rcs is None else rcs,
        sfr=chosen.sfr if sfr is None else sfr,
    )
    if preset is not None:
        chosen = find_preset(preset).apply(chosen)
    training = {module for module in clip_model.modules() if module.training}
    encoder = DenseEncoder(
        clip_model,
        base=chosen.base,
        rcs=chosen.rcs,
        sfr=chosen.sfr,
        final_block=chosen.final_block,
        implementation=implementation,
        correlation=chosen.correlation if correlation is None else correlation,
        proxy=proxy,
        proxy_attention=chosen.proxy,
        pieces=chosen.pieces,
        position=chosen.position,
        inference=inference,
    )
    return Patched(clip_model, encoder, training)

"""CLIPSeg (Lüddecke & Ecker, CVPR 2022) as a predictor, by the model of transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from resclip.predictors.base import IMAGENET_MEAN, IMAGENET_STD, PredictorSettings
from resclip.predictors.hugging_face import check_model, load, text_features
from resclip.text.class_names import ClassEntry
from resclip_kernels import check_callable, check_fraction

WEIGHTS = "CIDAS/clipseg-rd64-refined"
TEMPLATE = "a photo of a {}."
BACKGROUND = 0.5
CLASSES_PER_CALL = 16
"""How many classes the decoder runs on together, for each window."""


class ClipSeg:
    """A decoder on three blocks of CLIP that draws the mask of one text, run once for each class.

    CLIPSeg answers whether a text fits a pixel, not which of several does, so how its masks become labels is a choice
    of this library: a class's score is σ(logit), the largest wins, and the background of a dataset that has one wins
    where none exceeds 0.5. The model was trained by binary cross-entropy, so 0.5 is where it says that a text does not
    fit; nothing was tuned. Windows have the 352 pixels that it was trained on; a window that is not square, as of an
    image smaller than one, is squashed to that size, as the model's own image processor does with whole images.

    Args:
        weights: a repository on the hub, or a folder with what `save_pretrained` writes.
        background: the background's constant score, in [0, 1].
        device: where the model goes.
        model, tokenizer: a `CLIPSegForImageSegmentation` that is there already, and a function of prompts that returns
            its token ids, (N, context); in place of `weights`.

    Raises:
        ImportError: transformers is not installed.
        WeightsUnavailable: the weights cannot be fetched or read.
        TypeError, ValueError: an option that does not fit.
    """

    name = "clipseg"
    modules_obstacle = (
        "RCS and SFR change the attention of CLIP's final block, of which CLIPSeg's trained decoder reads nothing: it "
        "takes earlier blocks"
    )

    def __init__(
        self,
        weights: str = WEIGHTS,
        *,
        background: float = BACKGROUND,
        device: torch.device | str = "cpu",
        model: Any = None,
        tokenizer: Callable[[list[str]], Tensor] | None = None,
    ) -> None:
        check_fraction("background", background)
        kind = "CLIPSegForImageSegmentation"
        if model is None:
            model, tokenizer = load(kind, weights, device)
        else:
            check_callable("tokenizer", tokenizer, "a function of a list of prompts")
            weights = type(model).__name__
        host: Any = check_model(model, kind)
        self.model = host.to(device)
        self.tokenizer = tokenizer
        self.device = torch.device(device)
        side: int = self.model.config.vision_config.image_size
        # The configuration has CLIP's 224, and the decoder was trained on 352 × 352.
        self.side = 352 if side == 224 else side
        self.settings = PredictorSettings(
            short_side=self.side,
            window=self.side,
            stride=max(1, self.side // 2),
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            templates=(TEMPLATE,),
            background=background,
        )
        self.options = {"weights": weights}

    def prepare(self, entries: Sequence[ClassEntry]) -> Tensor:
        """(C, E) text features as the decoder takes them, of any norm."""
        return text_features(
            self.model.clip.get_text_features,
            self.tokenizer,
            entries,
            TEMPLATE,
            self.device,
            unit=False,
        )

    def scores(self, pixels: Tensor, state: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, C, h, w), in [0, 1]."""
        if pixels.shape[2] != pixels.shape[3]:
            pixels = F.interpolate(pixels, size=(self.side, self.side), mode="bilinear")
        hidden = self.model.clip.vision_model(
            pixels, output_hidden_states=True, interpolate_pos_encoding=True, return_dict=True
        ).hidden_states
        # Before the first block there is one more.
        taken = [hidden[number + 1] for number in self.model.extract_layers]
        masks = []
        for first in range(0, len(state), CLASSES_PER_CALL):
            texts = state[first : first + CLASSES_PER_CALL]
            # Of each window every text: rows [B · C, …].
            repeated = [each.repeat_interleave(len(texts), dim=0) for each in taken]
            logits = self.model.decoder(repeated, texts.repeat(len(pixels), 1)).logits
            masks.append(logits.unflatten(0, (len(pixels), len(texts))))
        return torch.cat(masks, dim=1).sigmoid()

"""GroupViT (Xu et al., CVPR 2022) as a predictor, by the model of transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from resclip.predictors.base import IMAGENET_MEAN, IMAGENET_STD, OWN, PredictorSettings
from resclip.predictors.groups import NO_MODULES, RULES, GroupRule, group_scores
from resclip.predictors.hugging_face import check_model, load, text_features
from resclip.text.class_names import ClassEntry
from resclip_kernels import check_callable, check_choice, check_fraction

WEIGHTS = "nvidia/groupvit-gcc-yfcc"
TEMPLATE = "a photo of a {}."
THRESHOLDS: Mapping[str, float] = {"voc21": 0.95, "context60": 0.35, "coco-object": 0.95}
"""The background's threshold by dataset, of the authors' program; its paper names others, 0.9 and 0.5."""
USUAL_THRESHOLD = 0.95


class GroupViT:
    """Patches are gathered in groups, and a pixel has the scores of the group that it belongs to; see `group_scores`.

    Windows of any size are taken: `GroupViTModel.forward` refuses all but the trained one, so the tower's parts are
    called one by one, with position embeddings resized bicubically. A name is asked for alone, without its synonyms.
    The settings are those of the authors' program: short side 448, windows of 448 every 224, one prompt.

    Args:
        weights: a repository on the hub, or a folder with what `save_pretrained` writes.
        rule: "original", or "hugging-face" for the soft rule of the port, which has no background: a dataset's
            background is then a class like any other, by the first of its names.
        threshold: the background's, in [0, 1]; None: the dataset's in the authors' program, else 0.95.
        dataset: the name of the dataset, for the threshold.
        device: where the model goes.
        model, tokenizer: a `GroupViTModel` that is there already, and a function of prompts that returns its token ids,
            (N, context); in place of `weights`.

    Raises:
        ImportError: transformers is not installed.
        WeightsUnavailable: the weights cannot be fetched or read.
        TypeError, ValueError: an option that does not fit.
    """

    name = "groupvit"
    modules_obstacle = NO_MODULES

    def __init__(
        self,
        weights: str = WEIGHTS,
        *,
        rule: GroupRule = "original",
        threshold: float | None = None,
        dataset: str | None = None,
        device: torch.device | str = "cpu",
        model: Any = None,
        tokenizer: Callable[[list[str]], Tensor] | None = None,
    ) -> None:
        check_choice("rule", rule, RULES)
        if threshold is not None:
            check_fraction("threshold", threshold)
            if rule != "original":
                raise ValueError("threshold is of rule='original'; leave one of the two out")
        if model is None:
            model, tokenizer = load("GroupViTModel", weights, device)
        else:
            check_callable("tokenizer", tokenizer, "a function of a list of prompts")
            weights = type(model).__name__
        host: Any = check_model(model, "GroupViTModel")
        self.model = host.to(device)
        self.tokenizer = tokenizer
        self.device = torch.device(device)
        self.rule: GroupRule = rule
        self.threshold: float | None = None
        if rule == "original":
            usual = THRESHOLDS.get(dataset or "", USUAL_THRESHOLD)
            self.threshold = usual if threshold is None else threshold
        self.settings = PredictorSettings(
            short_side=448,
            long_side=2048,
            window=448,
            stride=224,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            smallest=self.model.config.vision_config.patch_size,
            templates=(TEMPLATE,),
            background=OWN if rule == "original" else None,
        )
        self.options = {"weights": weights, "rule": rule, "threshold": self.threshold}

    def prepare(self, entries: Sequence[ClassEntry]) -> Tensor:
        """(C, E) unit text features."""
        features = self.model.get_text_features
        return text_features(features, self.tokenizer, entries, TEMPLATE, self.device)

    def scores(self, pixels: Tensor, state: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, 1 + C, H, W), the background first; by Hugging Face's rule (B, C, H, W)."""
        vision, patch = self.model.vision_model, self.settings.smallest
        height, width = (int(side) for side in pixels.shape[2:])
        # The table is resized to whole patches, so what is left over goes first.
        grid = height // patch, width // patch
        whole = pixels[:, :, : grid[0] * patch, : grid[1] * patch]
        embedded = vision.embeddings(whole, interpolate_pos_encoding=True)
        encoded = vision.encoder(embedded, output_attentions=True, return_dict=True)
        final = vision.layernorm(encoded.last_hidden_state)
        # The projection has a BatchNorm of rows.
        groups = self.model.visual_projection(final.flatten(0, 1)).unflatten(0, final.shape[:2])
        return group_scores(
            encoded.attentions,
            groups,
            self.model.visual_projection(final.mean(dim=1)),
            state,
            float(self.model.logit_scale.exp()),
            grid=grid,
            size=(height, width),
            threshold=self.threshold,
            rule=self.rule,
        )

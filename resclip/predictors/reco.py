"""ReCo (Shin et al., NeurIPS 2022) as a predictor: classes by what reference pictures of each have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resclip.encoder.dense_encoder import DenseEncoder
from resclip.inference.preprocessing import normalise
from resclip.io.images import PixelArray, read_image
from resclip.io.resize import resize, resize_shape
from resclip.methods.catalogue import Method, find_method
from resclip.models import load_model, wrap_model
from resclip.models.proxy_models import find_proxy
from resclip.predictors.base import IMAGENET_MEAN, IMAGENET_STD, PredictorSettings
from resclip.predictors.co_segmentation import co_segment, reco_scores, text_fit
from resclip.text.class_names import ClassEntry
from resclip.text.templates import imagenet_templates
from resclip.text.vocabulary import NameEncoder
from resclip_kernels import check_callable, check_count, check_flag, check_type, quoted

CONTEXTS = ("tree", "sky", "building", "road", "person")
"""What surrounds things, and is taken out of their references, in this order."""
SAME = {"vegetation": "tree"}
"""Classes that are a context by another name."""
SCENE_TEMPLATES = (
    "there is a {} in the scene.",
    "there is the {} in the scene.",
    "this is a {} in the scene.",
    "this is the {} in the scene.",
    "this is one {} in the scene.",
)
"""Prompts beside CLIP's 80."""
PICTURES = 50
"""How many pictures of a class are used at most."""
SIDE = 224
"""Side in pixels of the middle of a reference picture that is used."""
DENSE_CLIP = "clip"
"""The features that are the dense CLIP's own, in place of another model's."""
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")


class Prepared(NamedTuple):
    """What is known of the classes."""

    references: Tensor
    """(C, D) unit."""
    text: Tensor
    """(C, E) unit."""


class ReCo:
    """A pixel has the class whose reference its feature resembles, times how well the class's name fits by CLIP.

    A reference is what pictures of a class have in common (`co_segment`). The released program finds the pictures in
    ImageNet by CLIP; here they are a folder of the user's own. Its dense CLIP is a ResNet's last projection, which on a
    vision transformer is the method "maskclip"; any other method may take its place. Images are seen by windows of 320
    pixels at a short side of 320, never cropped; there is no background rule, so a class "background" needs pictures
    like any other.

    Args:
        references: a folder with one folder for each class, called by the class's name or one of its synonyms, with
            pictures in it. Folders called as `contexts` are used for those.
        features: what gives the features that are compared: the name of a timm model, or "clip" for the dense CLIP
            itself, or a function of (B, 3, H, W) pixels in ImageNet's normalisation that returns (B, D, h, w). The
            released program uses weights of "deit_small_distilled_patch16_224" that timm does not have.
        model, pretrained: the CLIP model, as `resclip.load` takes them.
        method: of the dense CLIP.
        contexts: what to leave out of the other classes' references, in this order; those without a folder are passed
            over, and the options say which are used. None: no contexts.
        text_attention: whether locations of reference pictures are weighted by how well the class's name fits.
        text_inference: whether scores are multiplied by how well the name fits.
        retrieve: whether, of more pictures than `pictures`, those that CLIP finds nearest to the name are used; else
            the first by name.
        pictures: the most pictures of a class.
        released_slip: see `co_segment`.
        device: where the models go.

    Raises:
        TypeError, ValueError: an option that does not fit, or a folder that is not there.
        WeightsUnavailable: a model cannot be fetched.
    """

    name = "reco"
    modules_obstacle = (
        "RCS and SFR change the attention of a CLIP tower's final block, and ReCo compares features of another model: "
        "give the method to its dense CLIP, as in method=naclip+rcs"
    )

    def __init__(
        self,
        references: str | Path,
        *,
        features: str | Callable[[Tensor], Tensor] = "deit_small_distilled_patch16_224",
        model: str | nn.Module = "ViT-B-16",
        pretrained: str | None = None,
        method: str | Method = "maskclip",
        contexts: Sequence[str] | None = CONTEXTS,
        text_attention: bool = True,
        text_inference: bool = True,
        retrieve: bool = True,
        pictures: int = PICTURES,
        released_slip: bool = True,
        device: torch.device | str = "cpu",
    ) -> None:
        for name, flag in (
            ("text_attention", text_attention),
            ("text_inference", text_inference),
            ("retrieve", retrieve),
            ("released_slip", released_slip),
        ):
            check_flag(name, flag)
        check_count("pictures", pictures, 1)
        check_type("references", references, (str, Path), "the path of a folder")
        contexts = () if contexts is None else contexts
        check_type("contexts", contexts, (tuple, list), "a list of names, or None")
        chosen = find_method(method)
        self.folders = folders_in(Path(references))
        self.contexts = [name for name in contexts if name.casefold() in self.folders]
        self.device = torch.device(device)
        if isinstance(model, str):
            if model == "ViT-B-16" and pretrained is None:
                pretrained = "openai"
            self.clip = load_model(model, pretrained, device=self.device)
        else:
            self.clip = wrap_model(model.to(self.device))
        self.encoder = DenseEncoder(
            self.clip.visual,
            base=chosen.base,
            rcs=chosen.rcs,
            sfr=chosen.sfr,
            final_block=chosen.final_block,
            correlation=chosen.correlation,
        )
        self.features: Callable[[Tensor], Tensor] | None = None
        if not isinstance(features, str):
            check_callable("features", features, 'a timm name, "clip", or a function of pixels')
            self.features = features
        elif features != DENSE_CLIP:
            self.features = find_proxy(
                features, mean=IMAGENET_MEAN, std=IMAGENET_STD, device=self.device
            )
        self.text_attention, self.text_inference = text_attention, text_inference
        self.retrieve, self.pictures, self.released_slip = retrieve, pictures, released_slip
        templates = (*imagenet_templates(), *SCENE_TEMPLATES)
        self.settings = PredictorSettings(
            short_side=320,
            window=320,
            stride=160,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            smallest=max(self.clip.visual.patch_size),
            templates=templates,
        )
        self.options = {
            "references": str(references),
            "features": features if isinstance(features, str) else named(features),
            "model": model if isinstance(model, str) else type(model).__name__,
            "pretrained": pretrained,
            "method": chosen.name,
            "contexts": self.contexts,
            "text_attention": text_attention,
            "text_inference": text_inference,
            "retrieve": retrieve,
            "pictures": pictures,
            "released_slip": released_slip,
        }

    def prepare(self, entries: Sequence[ClassEntry]) -> Prepared:
        """The classes' references and text features.

        Raises:
            ValueError: a class without pictures.
            ImageError: a picture that cannot be read.
        """
        names = [entry.queries[0] for entry in entries]
        wanted = list(dict.fromkeys((*names, *self.contexts)))
        names_of = NameEncoder(
            self.clip.model, self.clip.tokenizer, templates=self.settings.templates
        )
        rows = names_of.encode_rows(wanted)
        text = dict(zip(wanted, rows, strict=True))
        folders = [self.folder_of(entry) for entry in entries]  # Before any work.
        found: dict[str, Tensor] = {}
        for name in self.contexts:
            earlier = torch.stack(list(found.values())) if found else None
            found[name] = self.reference(self.folders[name.casefold()], text[name], earlier)
        contexts = torch.stack(list(found.values())) if found else None
        own = {name.casefold(): reference for name, reference in found.items()}
        references = []
        for entry, name, folder in zip(entries, names, folders, strict=True):
            key = entry.name.casefold()
            reference = own.get(SAME.get(key, key))
            references.append(
                self.reference(folder, text[name], contexts) if reference is None else reference
            )
        return Prepared(torch.stack(references), torch.stack([text[name] for name in names]))

    def scores(self, pixels: Tensor, state: Prepared) -> Tensor:
        """(B, 3, H, W) → (B, C, H, W) in (0, 1)."""
        features, patches = self.maps(pixels, state.text, self.text_inference)
        size = int(pixels.shape[2]), int(pixels.shape[3])
        return reco_scores(features, state.references, size, patches, state.text)

    def maps(self, pixels: Tensor, text: Tensor, with_text: bool) -> tuple[Tensor, Tensor | None]:
        """(B, D, h, w) features that are compared, and the (B, E, h', w') dense ones of CLIP if asked for; float32.

        Args:
            pixels: in ImageNet's normalisation.
            text: for a method with SFR.
            with_text: whether the dense CLIP's are wanted.
        """
        if self.features is not None and not with_text:
            return self.features(pixels).float(), None
        dense = self.encoder(self.for_clip(pixels), text).patches
        patches: Tensor = dense.permute(0, 3, 1, 2).float()
        features = patches if self.features is None else self.features(pixels).float()
        return features, patches if with_text else None

    def for_clip(self, pixels: Tensor) -> Tensor:
        """Pixels in CLIP's normalisation."""
        mean, std, own_mean, own_std = (
            pixels.new_tensor(numbers).view(3, 1, 1)
            for numbers in (IMAGENET_MEAN, IMAGENET_STD, self.clip.mean, self.clip.std)
        )
        colours: Tensor = (pixels * std + mean - own_mean) / own_std
        return colours

    def folder_of(self, entry: ClassEntry) -> Path:
        """A class's folder; ValueError where there is none."""
        for name in (entry.name, *entry.queries):
            if name.casefold() in self.folders:
                return self.folders[name.casefold()]
        raise ValueError(
            f"references= must have a folder {quoted(entry.name)} with pictures of that class; its folders are "
            f"{', '.join(sorted(self.folders)) or 'none'}"
        )

    def reference(self, folder: Path, text: Tensor, contexts: Tensor | None) -> Tensor:
        """(D,) unit: what the pictures in a folder have in common."""
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in ENDINGS)
        if not paths:
            raise ValueError(
                f"{folder}: expected pictures ({', '.join(ENDINGS)}), got none; put some there"
            )
        if self.retrieve and len(paths) > self.pictures:
            paths = self.nearest(paths, text)
        features, weights = [], []
        for pixels in self.batches(paths[: self.pictures], SIDE):
            each, patches = self.maps(pixels, text[None], self.text_attention)
            features.append(each)
            if patches is not None:
                size = int(each.shape[2]), int(each.shape[3])
                weights.append(text_fit(patches, text[None], size)[:, 0])
        return co_segment(
            torch.cat(features),
            torch.cat(weights) if weights else None,
            contexts,
            released_slip=self.released_slip,
        )

    def nearest(self, paths: Sequence[Path], text: Tensor) -> list[Path]:
        """The pictures whose CLIP feature is most like the text, the best first."""
        tower = self.clip.visual
        side = tower.trained_grid[0] * tower.patch_size[0]
        cosines = torch.cat(
            [
                F.normalize(self.clip.model.encode_image(self.for_clip(pixels)).float(), dim=1)
                @ text
                for pixels in self.batches(paths, side)
            ]
        )
        best = cosines.topk(self.pictures).indices.tolist()
        return [paths[number] for number in best]

    def batches(self, paths: Sequence[Path], side: int) -> Iterator[Tensor]:
        """(B, 3, side, side) of the pictures' middles, in ImageNet's normalisation."""
        step = self.settings.batch_size
        for first in range(0, len(paths), step):
            crops = [middle(read_image(path), side) for path in paths[first : first + step]]
            pixels = torch.from_numpy(np.stack(crops)).to(self.device)
            yield normalise(pixels, IMAGENET_MEAN, IMAGENET_STD)


def folders_in(folder: Path) -> dict[str, Path]:
    """The folders in a folder by their names in small letters; ValueError where it is none."""
    if not folder.is_dir():
        raise ValueError(
            f"references= must be a folder of folders of pictures; got {str(folder)!r}"
        )
    return {path.name.casefold(): path for path in sorted(folder.iterdir()) if path.is_dir()}


def middle(image: PixelArray, side: int) -> PixelArray:
    """(side, side, 3): the image at this short side, cropped to its middle."""
    height, width = resize_shape(image.shape[0], image.shape[1], side, 1 << 30)
    height, width = max(height, side), max(width, side)
    resized = resize(image, (height, width))
    top, left = (height - side) // 2, (width - side) // 2
    return np.ascontiguousarray(resized[top : top + side, left : left + side])


def named(function: Any) -> str:
    """What a function or module is called, for a report."""
    return str(getattr(function, "__qualname__", type(function).__name__))

"""Embeddings: what a model makes of an image before it has seen a word, to be classified again and again.

`Embedding` holds it in memory, and reads and writes files of it. `EmbeddingTask` is an image on its way to one, and
`classify` takes one on to labels.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from resclip.encoder.dense_encoder import DenseEncoder
from resclip.encoder.final_block import FinalInputs
from resclip.encoder.layer_fusion import FusionInputs
from resclip.encoder.second_path import PathInputs
from resclip.encoder.token_repair import RepairInputs, Stream
from resclip.errors import EmbeddingError
from resclip.inference.pipeline import ImagePipeline, ImageTask, Strip, WindowPixels
from resclip.inference.preprocessing import ArrayImage, ImageRows
from resclip.inference.steps import WindowBatch
from resclip.inference.windows import Window, pad, padding
from resclip.io.files import check_regular, write_atomically
from resclip.io.images import ImageSource, PixelArray, read_picture
from resclip.io.picture import FILLING, NOWHERE, Georeference, Mask, Picture
from resclip.methods.composition import as_parts
from resclip.methods.options_text import as_dict
from resclip.steps.cross_windows import WindowTokens
from resclip.version import __version__
from resclip_kernels import check_choice, check_flag, check_type, quoted

FORMAT = 1
"""Of the files; one of another number is refused."""
SUFFIX = ".safetensors"
HEADER = "resclip embedding"
"""The key of a file's metadata that makes it an embedding."""
PRECISIONS = ("float32", "int16", "int8")
WORD = 1 << 17
"""Values of a word: a file keeps 16 of its 17 bits as a number, and the highest bits of eight words as a byte."""
HALF = 60_000
"""Numbers up to this have a place in half precision."""
PAIR = 362
"""Values of a number of which a word holds two."""
KINDS: Mapping[str, type] = {
    kind.__name__: kind
    for kind in (
        FinalInputs,
        FusionInputs,
        PathInputs,
        RepairInputs,
        Stream,
        WindowBatch,
        WindowTokens,
    )
}
"""What an embedding may be made of beside tensors, numbers and tuples: nothing else is made of a file."""


@dataclass(frozen=True, eq=False, repr=False)
class Embedding:
    """One image as a model sees it, before any word: `Segmenter.embed` makes it, `Segmenter.classify` reads it.

    Attributes:
        size: (height, width) of the image in pixels.
        shape: the same as it went through the model.
        windows: what was made of each window; nothing in it depends on a class.
        image_vector: (E,), CLIP's own vector of the whole image, where a step asks for it.
        made_by: what model, method and settings it comes from, as values for JSON.
        picture: the image itself; None where it was not kept.
        absent: (height, width) bool, where the image has no pixel; None: nowhere.
        georeference: where the image lies; files keep its reference system and transform.
        record: what was done to read the image, as values for JSON.
    """

    size: tuple[int, int]
    shape: tuple[int, int]
    windows: Mapping[Window, WindowBatch]
    image_vector: Tensor | None
    made_by: Mapping[str, Any]
    picture: PixelArray | None = None
    absent: Mask | None = None
    georeference: Georeference = NOWHERE
    record: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        height, width = self.size
        count = len(self.windows)
        return (
            f"Embedding({width} x {height} pixels, {count} window{'s' if count > 1 else ''}, "
            f"{self.nbytes / 1e6:.1f} MB, {self.made_by.get('method')})"
        )

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors in memory."""
        return sum(tensor.nbytes for tensor in tensors_of(tuple(self.windows.values())))

    def as_picture(self) -> Picture:
        """The image, grey where it was not kept."""
        pixels, record = self.picture, dict(self.record)
        if pixels is None:
            pixels = np.full((*self.size, 3), FILLING, np.uint8)
            record["image"] = "not kept with its embedding: drawn grey"
        return Picture(pixels, self.absent, self.georeference, record)

    def without_image(self) -> Embedding:
        """The same without the image."""
        return replace(self, picture=None)

    def with_image(self, image: ImageSource) -> Embedding:
        """The same with the image that it was made of, which methods that look at pixels again need.

        Raises:
            ImageError: an image that cannot be read.
            EmbeddingError: an image of another size.
        """
        picture = read_picture(image)
        if (picture.height, picture.width) != self.size:
            raise EmbeddingError(
                f"expected the image that the embedding was made of, of {self.size[1]} × {self.size[0]} pixels, got "
                f"one of {picture.width} × {picture.height}"
            )
        return replace(
            self,
            picture=picture.pixels,
            absent=picture.absent,
            georeference=picture.georeference,
            record=picture.record,
        )

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        precision: str = "int16",
        image: bool = False,
    ) -> Path:
        """Write it to a .safetensors file, whole or not at all.

        Args:
            path: an existing file is replaced.
            precision: "float32" as it is; "int16" keeps each number in 17 bits and "int8" in 8.5, between the least and
                the largest of its channel in this image, so that none is off by more than a part in 262,000 or 720 of
                that range. A method without SFR takes 512 numbers a patch of ViT-B/16: 2,048, 1,088 or 544 bytes.
            image: whether the image is kept in it too, as a PNG.

        Raises:
            ValueError: another ending, an unknown precision, numbers that are not finite, no image to keep.
            OSError: the file cannot be written.
        """
        file = Path(path)
        if file.suffix != SUFFIX:
            raise ValueError(f"expected the path of a {SUFFIX} file, got {str(file)!r}")
        check_choice("precision", precision, PRECISIONS)
        check_flag("image", image)
        if image and self.picture is None:
            raise ValueError(
                "image=True keeps the image, and this embedding has none: add it with with_image"
            )
        tensors: dict[str, Tensor] = {}
        groups = []
        for number, windows in enumerate(self.groups()):
            whole = join([self.windows[window] for window in windows])
            layout = pack(whole, f"{number}", tensors, precision)
            groups.append({"windows": [list(window) for window in windows], "layout": layout})
        vector = pack(self.image_vector, "image", tensors, "float32")
        if self.absent is not None:
            tensors["absent"] = torch.from_numpy(np.packbits(self.absent))
        if image and self.picture is not None:
            stream = io.BytesIO()
            Image.fromarray(self.picture).save(stream, "PNG")
            tensors["png"] = torch.frombuffer(bytearray(stream.getvalue()), dtype=torch.uint8)
        header = {
            "format": FORMAT,
            "resclip": __version__,
            "precision": precision,
            "size": self.size,
            "shape": self.shape,
            "groups": groups,
            "image_vector": vector,
            "made_by": self.made_by,
            "record": self.record,
            "place": place_of(self.georeference),
        }
        text = json.dumps(header, ensure_ascii=False)
        metadata = {HEADER: text, "checksum": checksum(text, tensors)}
        write_atomically(file, to_bytes(tensors, metadata))
        return file

    def groups(self) -> Iterator[list[Window]]:
        """Windows of one size, in their order."""
        by_size: dict[tuple[int, int], list[Window]] = {}
        for window in self.windows:
            by_size.setdefault((window.height, window.width), []).append(window)
        yield from by_size.values()

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, image: ImageSource | None = None) -> Embedding:
        """Read what `save` wrote; nothing in a file is executed.

        Args:
            path: of the file.
            image: the image that it was made of, for methods that look at pixels again, and for pictures of the result.

        Raises:
            EmbeddingError: no embedding, one of another format, or another image than that of the file.
            OSError: the file cannot be read.
            ImageError: the image cannot be read.
        """
        file = Path(path)
        check_regular(file)
        try:
            found = cls.unpack(*read_file(file))
        except EmbeddingError:
            raise
        except Exception as error:  # A damaged header may be anything at all.
            raise EmbeddingError(f"{file}: expected an embedding, got a damaged file") from error
        return found if image is None else found.with_image(image)

    @classmethod
    def unpack(cls, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Embedding:
        """What a file's header and tensors stand for."""
        height, width = header["size"]
        windows: dict[Window, WindowBatch] = {}
        for group in header["groups"]:
            whole = unpack(group["layout"], tensors)
            for number, listed in enumerate(group["windows"]):
                windows[Window(*listed)] = part(whole, number, len(group["windows"]))
        absent = picture = None
        if "absent" in tensors:
            bits = np.unpackbits(tensors["absent"].numpy(), count=height * width)
            absent = bits.reshape(height, width).astype(bool)
        if "png" in tensors:
            picture = np.asarray(
                Image.open(io.BytesIO(tensors["png"].numpy().tobytes()), formats=["PNG"])
            )
            if picture.shape != (height, width, 3):
                raise ValueError("another image")
        return cls(
            (height, width),
            (header["shape"][0], header["shape"][1]),
            dict(sorted(windows.items())),
            unpack(header["image_vector"], tensors),
            dict(header["made_by"]),
            picture,
            absent,
            georeference_of(header["place"]),
            dict(header["record"]),
        )


def read_file(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header and the tensors of a file; EmbeddingError for one of another kind or format, or that was changed."""
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata() or {}
        text = metadata.get(HEADER)
        if text is None:
            raise EmbeddingError(
                f"{file}: expected an embedding that Embedding.save or `resclip embed` wrote, got other tensors"
            )
        header = json.loads(text)
        if header.get("format") != FORMAT:
            raise EmbeddingError(
                f"{file}: expected an embedding of format {FORMAT}, got {quoted(header.get('format'))}, "
                f"written by resclip {quoted(header.get('resclip'))}: embed the image again"
            )
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    if metadata.get("checksum") != checksum(text, tensors):
        raise EmbeddingError(f"{file}: expected an embedding, got a damaged file")
    return header, tensors


def is_embedding(path: Path) -> bool:
    """Whether a file says that it is an embedding, whole or not."""
    try:
        check_regular(path)
        with safe_open(path, framework="pt") as opened:
            return HEADER in (opened.metadata() or {})
    except (OSError, SafetensorError):
        return False


def checksum(header: str, tensors: Mapping[str, Tensor]) -> str:
    """Hash of all that a file holds."""
    total = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        total.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        total.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def place_of(georeference: Georeference) -> dict[str, Any] | None:
    """A georeference as values for JSON: its reference system and transform; None where it has none."""
    if georeference.crs is None or georeference.transform is None:
        return None
    return {"crs": georeference.crs.to_wkt(), "transform": list(georeference.transform)[:6]}


def georeference_of(place: Mapping[str, Any] | None) -> Georeference:
    """What `place_of` wrote; nowhere without rasterio, which reads it."""
    if place is None:
        return NOWHERE
    try:
        from rasterio.crs import CRS
        from rasterio.transform import Affine
    except ImportError:
        return NOWHERE
    return Georeference(CRS.from_wkt(place["crs"]), Affine(*place["transform"]))


Tree: TypeAlias = Any
"""Tensors that begin with the batch, in tuples, mappings and the classes of `KINDS`."""


def map_tensors(function: Callable[..., Any], *trees: Tree) -> Tree:
    """The same tree with what the function makes of its tensors, or of those at one place of several trees."""
    first = trees[0]
    if isinstance(first, Tensor):
        return function(*trees)
    if isinstance(first, Mapping):
        return {name: map_tensors(function, *(tree[name] for tree in trees)) for name in first}
    if isinstance(first, tuple):
        values = [map_tensors(function, *parts) for parts in zip(*trees, strict=True)]
        return type(first)(*values) if hasattr(first, "_fields") else tuple(values)
    if type(first).__name__ in KINDS:
        return type(first)(
            **{
                one.name: map_tensors(function, *(getattr(tree, one.name) for tree in trees))
                for one in dataclasses.fields(first)
            }
        )
    if first is None or isinstance(first, (bool, int, float, str)):
        return first
    raise EmbeddingError(
        "this method's second pass chooses heads by their maps, which are not kept for other words: take the method "
        "without SFR, or segment the image itself"
    )


def part(tree: Tree, number: int, count: int) -> Tree:
    """One image of a batch of `count`, as a batch of one that keeps nothing of the others.

    A tensor may hold several batches one behind the other, as two streams of tokens do.
    """
    return map_tensors(
        lambda tensor: (
            tensor.unflatten(0, (-1, count))[:, number : number + 1].flatten(0, 1).clone()
        ),
        tree,
    )


def join(parts: Sequence[Tree]) -> Tree:
    """A batch of what `part` has taken apart."""
    if len(parts) == 1:
        return parts[0]
    return map_tensors(lambda *tensors: torch.stack(tensors, dim=1).flatten(0, 1), *parts)


def tensors_of(tree: Tree) -> list[Tensor]:
    """All tensors of a tree."""
    found: list[Tensor] = []
    map_tensors(found.append, tree)
    return found


def pack(tree: Tree, name: str, tensors: dict[str, Tensor], precision: str) -> Any:
    """A tree's layout as values for JSON; its tensors go into `tensors`, under names that begin with `name`."""
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return {"value": tree}
    if isinstance(tree, Tensor):
        return pack_tensor(tree.detach().cpu(), name, tensors, precision)
    if isinstance(tree, Mapping):
        return {
            "mapping": {
                key: pack(value, f"{name}.{key}", tensors, precision) for key, value in tree.items()
            }
        }
    if isinstance(tree, tuple) and not hasattr(tree, "_fields"):
        return {
            "tuple": [
                pack(value, f"{name}.{i}", tensors, precision) for i, value in enumerate(tree)
            ]
        }
    fields = names_of(tree)
    return {
        "kind": type(tree).__name__,
        "fields": {
            key: pack(getattr(tree, key), f"{name}.{key}", tensors, precision) for key in fields
        },
    }


def names_of(tree: Any) -> list[str]:
    """The fields of one of `KINDS`, a named tuple or a dataclass."""
    if dataclasses.is_dataclass(tree):
        return [one.name for one in dataclasses.fields(tree)]
    return list(tree._fields)


def unpack(layout: Any, tensors: Mapping[str, Tensor]) -> Tree:
    """What `pack` took apart."""
    if "value" in layout:
        return layout["value"]
    if "tensor" in layout:
        return unpack_tensor(layout, tensors)
    if "mapping" in layout:
        return {key: unpack(value, tensors) for key, value in layout["mapping"].items()}
    if "tuple" in layout:
        return tuple(unpack(value, tensors) for value in layout["tuple"])
    fields = {key: unpack(value, tensors) for key, value in layout["fields"].items()}
    return KINDS[layout["kind"]](**fields)


def pack_tensor(
    tensor: Tensor, name: str, tensors: dict[str, Tensor], precision: str
) -> dict[str, Any]:
    """The layout of a tensor, which goes into `tensors` in as many bits as the precision says."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    if (
        not tensor.is_floating_point()
        or precision == "float32"
        or tensor.ndim < 2
        or not tensor.numel()
    ):
        tensors[name] = tensor.contiguous()
        return {"tensor": name}
    if not tensor.isfinite().all():
        raise ValueError(
            "the embedding holds NaN or infinity: look for it in the pixels or the weights"
        )
    rows = tensor.flatten(0, -2).double()
    least, most = rows.amin(dim=0), rows.amax(dim=0)
    levels = WORD if precision == "int16" else PAIR
    # As short as the file keeps them, and rounded outwards, so that the range holds all numbers.
    least = (least - least.abs() / 1024).half() if rows.abs().max() < HALF else least.float()
    step = ((most - least).clamp(min=1e-30) / (levels - 1) * (1 + 1 / 128)).bfloat16()
    numbers = ((rows - least) / step.double()).round().clamp(0, levels - 1).long()
    if precision == "int8":
        if numbers.shape[1] % 2:
            numbers = torch.cat([numbers, numbers[:, :1]], dim=1)
        numbers = numbers[:, ::2] * PAIR + numbers[:, 1::2]
    words: NDArray[np.int64] = numbers.numpy()
    tensors[f"{name}:low"] = torch.from_numpy((words & 0xFFFF).astype(np.uint16))
    tensors[f"{name}:high"] = torch.from_numpy(np.packbits((words >> 16).astype(np.uint8)))
    tensors[f"{name}:least"], tensors[f"{name}:step"] = least, step
    return {
        "tensor": name,
        "shape": list(tensor.shape),
        "dtype": dtype,
        "pairs": precision == "int8",
    }


def unpack_tensor(layout: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Tensor:
    """The tensor that `pack_tensor` wrote."""
    name = layout["tensor"]
    if "shape" not in layout:
        return tensors[name]
    low = tensors[f"{name}:low"].numpy()
    high = np.unpackbits(tensors[f"{name}:high"].numpy(), count=low.size).reshape(low.shape)
    numbers = torch.from_numpy(low.astype(np.int64) | high.astype(np.int64) << 16)
    width = layout["shape"][-1]
    if layout["pairs"]:
        numbers = torch.stack([numbers // PAIR, numbers % PAIR], dim=2).flatten(1)[:, :width]
    rows = tensors[f"{name}:least"].double() + numbers * tensors[f"{name}:step"].double()
    return rows.reshape(layout["shape"]).to(getattr(torch, layout["dtype"]))


class EmbeddingTask(ImageTask):
    """An image of which no labels are wanted, but what the model makes of it before any word.

    Args:
        picture: the image as it was read.
    """

    def __init__(self, pipeline: ImagePipeline, picture: Picture) -> None:
        pixels = ArrayImage(pipeline.preparation.resize(picture.pixels))
        super().__init__(pipeline, pixels, (picture.height, picture.width), picture)
        self.found: dict[Window, WindowBatch] = {}

    def encode(self, windows: Sequence[WindowPixels], limit: int) -> list[Any]:
        """See `ImageTask.encode`; a `WindowBatch` of each window."""
        batch = self.pipeline.read_windows(windows, limit)
        # Pixels are those of the image, which is kept once.
        batch = replace(batch, pixels=None)
        count = len(windows) if not self.pipeline.pad_batches else limit
        return [part(batch, number, count) for number in range(len(windows))]

    def put(self, window: Window, result: Any) -> None:
        """See `ImageTask.put`."""
        self.found[window] = result

    def next_strip(self) -> Embedding | None:  # type: ignore[override]
        """The embedding, once the last window is there."""
        windows = self.stitcher.windows
        if len(self.found) < len(windows):
            return None
        self.rows_out = self.size[0]
        picture: Picture = self.tag
        return Embedding(
            self.size,
            self.shape,
            {window: self.found[window] for window in windows},
            self.image_vector,
            signature(self.pipeline),
            picture.pixels,
            picture.absent,
            picture.georeference,
            picture.record,
        )


class NoImage(NamedTuple):
    """In the place of an image that was not kept."""

    height: int
    width: int

    def rows(self, first: int, last: int) -> PixelArray:
        """EmbeddingError: there are none."""
        raise EmbeddingError(
            "this method looks at the image's pixels again, and the embedding was saved without them: load it with "
            "image=, or save it with image=True"
        )


def classify(
    pipeline: ImagePipeline, embedding: Embedding, tag: Any, *, keep_scores: bool = False
) -> Iterator[Strip]:
    """The strips of an embedded image by the pipeline's classes, as `resclip.inference.scheduler.run` gives them.

    Raises:
        EmbeddingError: the embedding comes from another model, method or window, or lacks an image that is needed.
    """
    check_fits(pipeline, embedding)
    device, dtype = pipeline.device, pipeline.encoder.tower.dtype
    pixels: ImageRows = NoImage(*embedding.shape)
    if embedding.picture is not None:
        pixels = ArrayImage(pipeline.preparation.resize(embedding.picture))
    task = ImageTask(pipeline, pixels, embedding.size, tag, keep_scores=keep_scores)
    if task.stitcher.windows != list(embedding.windows):
        raise EmbeddingError("expected the embedding of other windows: embed the image again")
    if embedding.image_vector is not None:
        task.image_vector = embedding.image_vector.to(device, dtype)

    def to_device(tensor: Tensor) -> Tensor:
        return tensor.to(device, dtype if tensor.is_floating_point() else None)

    for windows in embedding.groups():
        limit = 1 if pipeline.pad_batches else pipeline.batch_size
        for first in range(0, len(windows), limit):
            chosen = windows[first : first + limit]
            batch = map_tensors(to_device, join([embedding.windows[one] for one in chosen]))
            if pipeline.window_steps.reads_pixels:
                batch = replace(batch, pixels=pixels_of(task, chosen))
            evidence = [pipeline.evidence_of(task, window) for window in chosen]
            with torch.no_grad():
                pipeline.window_steps.take(batch, evidence)
            for window, one in zip(chosen, evidence, strict=True):
                task.put(window, one)
    while not task.is_finished:
        strip = task.next_strip()
        assert strip is not None
        yield strip


def pixels_of(task: ImageTask, windows: Sequence[Window]) -> Tensor:
    """(B, 3, H, W): the windows' pixels, padded as the encoder got them."""
    return torch.stack(
        [
            pad(
                task.normalised_rows(one.rows.start, one.rows.stop)[:, :, one.columns],
                padding(one, task.pipeline.pad_multiple),
            )
            for one in windows
        ]
    )


def signature(pipeline: ImagePipeline) -> dict[str, Any]:
    """What an embedding depends on, as values for JSON; other words, thresholds and refinements leave it as it is."""
    encoder, preparation, steps = pipeline.encoder, pipeline.preparation, pipeline.window_steps
    found = {
        "weights": digest(encoder),
        "base": encoder.base.name,
        "method": encoder.base.name
        + "+rcs" * (encoder.rcs is not None)
        + "+sfr" * (encoder.sfr is not None),
        "correlation": as_dict(encoder.correlation),
        "proxy": as_dict(encoder.final.proxy_attention),
        "rcs": as_dict(encoder.rcs),
        "layers": list(encoder.layers),
        "neighbourhood_std": encoder.neighbourhood_std,
        "final_block": encoder.final_block,
        "pieces": as_parts(encoder.pieces),
        "position": encoder.position,
        "overview": as_dict(encoder.overview),
        "window": pipeline.window,
        "stride": pipeline.stride,
        "pad_multiple": pipeline.pad_multiple,
        "mean": list(preparation.mean),
        "std": list(preparation.std),
        "keys of other windows": pipeline.steps.windows is not None,
        "of the image": steps.reads_whole_image,
        "of windows": sorted(steps.wanted),
    }
    return dict(json.loads(json.dumps(found)))


def check_fits(pipeline: ImagePipeline, embedding: Embedding) -> None:
    """EmbeddingError that names the first thing in which an embedding differs from what this pipeline makes."""
    check_type("embedding", embedding, Embedding, "an Embedding, as Segmenter.embed makes it")
    own = signature(pipeline)
    for name, value in own.items():
        came = embedding.made_by.get(name)
        if came != value:
            raise EmbeddingError(
                f"expected an embedding by this model and method, got one with other {name}, {quoted(came)} instead of "
                f"{quoted(value)}: embed the image again, or classify it by a segmenter that was made alike"
            )
    shape = pipeline.preparation.size(*embedding.size)
    if shape != embedding.shape:
        raise EmbeddingError(
            f"expected an embedding of the image at {shape[1]} × {shape[0]} pixels, got one at {embedding.shape[1]} × "
            f"{embedding.shape[0]}: embed it again, or classify it with the same short_side and long_side"
        )


def digest(encoder: DenseEncoder) -> str:
    """16 hexadecimal digits that tell weights apart, whatever the device, in float32 as in float16.

    Every number counts, rounded to half precision. What is changed through `.data`, past torch's own count of changes,
    is not seen by an encoder whose digest is known.
    """
    parameters = dict(encoder.tower.visual.state_dict())
    if isinstance(encoder.proxy, torch.nn.Module):
        parameters |= {f"proxy.{name}": one for name, one in encoder.proxy.state_dict().items()}
    state = tuple(
        (one.data_ptr(), 0 if one.is_inference() else one._version)  # noqa: SLF001
        for one in parameters.values()
    )
    known = DIGESTS.get(encoder)
    if known is not None and known[0] == state:
        return known[1]
    total = hashlib.sha256()
    for name, tensor in sorted(parameters.items()):
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        # Beyond half precision's largest number all are one; no weight is.
        half = tensor.detach().half().cpu().contiguous().reshape(-1)
        total.update(f"{name} {tuple(tensor.shape)}".encode())
        total.update(half.view(torch.uint8).numpy().data)
    DIGESTS[encoder] = state, total.hexdigest()[:16]
    return DIGESTS[encoder][1]


DIGESTS: WeakKeyDictionary[DenseEncoder, tuple[Any, str]] = WeakKeyDictionary()
"""By encoder: the tensors that it had, as they were, and their digest."""

"""What a segmentation gives other programs, read back by them: COCO, YOLO, GeoJSON, supervision, pandas, notebooks."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from affine import Affine
from numpy.typing import NDArray
from PIL import Image
from pycocotools.coco import COCO
from rasterio.control import GroundControlPoint
from rasterio.features import rasterize
from shapely.geometry import shape
from test_geometry import random_maps, smooth_map

from resclip.formats import tables
from resclip.formats.coco import CocoFile
from resclip.formats.keyholes import keyhole
from resclip.io.picture import NOWHERE, Georeference
from resclip.result import Segmentation

NAMES = ("sky", "tree", "<b>'cat' & \"dog\"</b>", "猫", "unused")


def segmentation(
    labels: NDArray[np.int64], georeference: Georeference = NOWHERE, names: tuple[str, ...] = NAMES
) -> Segmentation:
    generator = np.random.default_rng(0)
    return Segmentation(
        image=np.zeros((*labels.shape, 3), np.uint8),
        labels=labels,
        probabilities=generator.random(labels.shape, np.float32),
        names=names,
        georeference=georeference,
    )


def framed() -> Segmentation:
    """Sky around a tree's frame with sky in it, a speck that touches the frame at a corner, and pixels of no class."""
    labels = np.zeros((20, 30), np.int64)
    labels[5:15, 5:15] = 1
    labels[8:12, 8:12] = 0
    labels[15, 15] = 1
    labels[:2, 25:] = -1
    return segmentation(labels)


def coco_of(path: Path, content: dict[str, Any] | None = None) -> COCO:
    if content is not None:
        path.write_text(json.dumps(content), encoding="utf-8")
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


def labels_of(coco: COCO, image_id: int, size: tuple[int, int]) -> NDArray[np.int64]:
    """The label map that pycocotools makes of the annotations, which must not overlap where they are exact."""
    labels = np.full(size, -1, np.int64)
    for annotation in coco.loadAnns(coco.getAnnIds(imgIds=[image_id])):
        labels[coco.annToMask(annotation) > 0] = annotation["category_id"] - 1
    return labels


def test_masks_are_the_instances_largest_first() -> None:
    result = framed()
    sky, tree, hole = result.masks()
    assert [one.name for one in (sky, tree, hole)] == ["sky", "tree", "sky"]
    assert (tree.index, tree.area, tree.box) == (1, 85, (5, 5, 11, 11))
    mask = result.labels == 1
    np.testing.assert_array_equal(tree.mask, mask)
    assert tree.probability == pytest.approx(result.probabilities[mask].mean(), rel=1e-5)
    assert [one.area for one in result.masks(connectivity=4)] == [489, 84, 16, 1]
    assert [one.area for one in result.masks(min_area=17)] == [489, 85]
    assert result.boxes(17) == [("sky", (0, 0, 30, 20)), ("tree", (5, 5, 11, 11))]
    nothing = segmentation(np.full((3, 4), -1))
    assert nothing.masks() == []
    assert nothing.to_coco()["annotations"] == []
    assert nothing.to_geojson()["features"] == []
    assert nothing.to_yolo().labels == ""
    assert len(nothing.to_supervision()) == 0


def test_a_class_s_mask_and_run_lengths() -> None:
    result = framed()
    np.testing.assert_array_equal(result.mask("tree"), result.labels == 1)
    assert not result.mask("unused").any()
    assert result.rle("unused", compressed=False) == {"size": [20, 30], "counts": [600]}
    assert result.rle("tree", compressed=False)["counts"][:3] == [105, 10, 10]
    with pytest.raises(ValueError, match="got 'tee'; did you mean 'tree'\\?"):
        result.mask("tee")
    with pytest.raises(ValueError, match="got 'xyz'; there are 'sky', 'tree', .*'unused'$"):
        result.mask("xyz")
    many = segmentation(np.zeros((1, 1), np.int64), names=tuple(f"n{i}" for i in range(30)))
    with pytest.raises(ValueError, match="'n9' and 20 more$"):
        many.mask("")


def test_polygons_are_by_class_and_none_of_an_absent_one() -> None:
    polygons = framed().polygons(0)
    assert list(polygons) == list(NAMES)
    assert polygons["unused"] == []
    assert sorted(polygon.area for polygon in polygons["tree"]) == [1, 84]
    # The frame and the speck touch at a point: two holes.
    assert [len(polygon.holes) for polygon in polygons["sky"]] == [2, 0]
    assert framed().polygons(min_area=17)["sky"][0].area == 489


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"min_area": 0}, ValueError, "min_area must be at least 1"),
        ({"min_area": 1.5}, TypeError, "min_area must be an integer"),
        ({"tolerance": -0.1}, ValueError, "tolerance must be a finite number from 0 to 100"),
        ({"segmentation": "mask"}, ValueError, "segmentation must be one of 'auto', 'polygons'"),
        ({"image_id": "a"}, TypeError, "image_id must be an integer"),
        ({"first_annotation_id": 0}, ValueError, "first_annotation_id must be at least 1"),
    ],
)
def test_options_out_of_range_are_refused(
    options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        framed().to_coco(**options)


@pytest.mark.parametrize("kind", ["auto", "polygons", "rle"])
def test_coco_is_read_back_by_pycocotools(tmp_path: Path, kind: str) -> None:
    """Every pixel at tolerance 0, by random maps of specks, holes and diagonal touches."""
    for number, labels in enumerate(random_maps(25, 1 + 2 * (kind == "auto"))):
        result = segmentation(labels)
        content = result.to_coco("a.jpg", 7, 3, tolerance=0, segmentation=kind)
        coco = coco_of(tmp_path / f"{number}.json", content)
        np.testing.assert_array_equal(labels_of(coco, 7, result.labels.shape), labels)
        assert coco.imgs[7] == {
            "id": 7, "file_name": "a.jpg", "width": labels.shape[1], "height": labels.shape[0],
        }  # fmt: skip
        for annotation, instance in zip(content["annotations"], result.masks(), strict=True):
            assert annotation["iscrowd"] == 0
            assert annotation["area"] == coco.annToMask(annotation).sum() == instance.area
            assert tuple(annotation["bbox"]) == instance.box


def test_coco_s_forms() -> None:
    forms = {
        kind: framed().to_coco(segmentation=kind, tolerance=0)
        for kind in ("auto", "polygons", "rle")
    }
    kinds = {
        kind: [type(one["segmentation"]) for one in content["annotations"]]
        for kind, content in forms.items()
    }
    assert kinds == {"auto": [dict, dict, list], "polygons": [list] * 3, "rle": [dict] * 3}
    assert forms["auto"]["categories"][1] == {"id": 2, "name": "tree", "supercategory": ""}
    assert [one["id"] for one in forms["auto"]["annotations"]] == [1, 2, 3]
    # The frame and the speck at its corner: two lists, of which the first goes through the hole.
    frame, speck = forms["polygons"]["annotations"][1]["segmentation"]
    assert len(frame) == 2 * (4 + 4 + 2)
    assert speck == [15, 15, 16, 15, 16, 16, 15, 16]


def test_coco_at_the_default_tolerance(tmp_path: Path) -> None:
    labels = smooth_map(400, 500, 5)
    result = segmentation(labels)
    coco = coco_of(tmp_path / "x.json", result.to_coco())
    assert (labels_of(coco, 1, labels.shape) == labels).mean() >= 0.995


def test_a_file_of_many_images_has_ids_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "annotations.json"
    results = [segmentation(labels) for labels in random_maps(6, 2)]
    with CocoFile(path, NAMES) as file:
        for number, result in enumerate(results):
            size = result.labels.shape
            file.add(f"{number}.jpg", (size[0], size[1]), result.masks(), 0)
        assert not path.exists()
    coco = coco_of(path)
    assert [image["file_name"] for image in coco.dataset["images"]] == [
        f"{number}.jpg" for number in range(6)
    ]
    ids = [one["id"] for one in coco.dataset["annotations"]]
    assert ids == list(range(1, len(ids) + 1))
    for number, result in enumerate(results):
        found = labels_of(coco, number + 1, result.labels.shape)
        np.testing.assert_array_equal(found, result.labels)
    with pytest.raises(ValueError, match="tolerance"), CocoFile(path, NAMES) as file:
        file.add("x.jpg", (1, 1), results[0].masks(), -1)
    assert coco_of(path).dataset == coco.dataset
    assert [one.name for one in tmp_path.iterdir()] == ["annotations.json"]
    with CocoFile(path, NAMES):
        pass
    assert coco_of(path).dataset["images"] == []


def test_yolo_s_lines_have_the_pixels_of_the_instances() -> None:
    for labels in (framed().labels, *random_maps(20, 2), smooth_map(120, 160, 4)):
        result = segmentation(labels)
        files = result.to_yolo(tolerance=0)
        height, width = labels.shape
        came = np.full(labels.shape, -1, np.int32)
        lines = files.labels.splitlines()
        assert len(lines) == len(result.masks())
        for line in lines:
            index, *numbers = line.split()
            values = np.array(numbers, float).reshape(-1, 2)
            assert values.min() >= 0
            assert values.max() <= 1
            ring = np.round(values * (width, height)).tolist()
            outline = {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}
            rasterize([(outline, int(index))], out=came)
        np.testing.assert_array_equal(came, labels)
    assert yaml.safe_load(files.data)["names"] == dict(enumerate(NAMES))


def test_opencv_fills_a_keyhole_as_ultralytics_does() -> None:
    """It draws the outline, too: half a pixel around, and the line through the hole."""
    result = framed()
    (polygons,) = [one.polygons(0) for one in result.masks() if one.name == "tree"]
    drawn = np.zeros((20 * 16, 30 * 16), np.uint8)
    cv2.fillPoly(drawn, [(keyhole(polygons) * 16).astype(np.int32)], 1)
    wanted = np.kron(result.mask("tree"), np.ones((16, 16), np.uint8))
    assert (drawn == wanted).mean() > 0.99


def test_geojson_in_pixels_says_so() -> None:
    result = framed()
    collection = result.to_geojson(tolerance=0)
    assert collection["type"] == "FeatureCollection"
    assert collection["coordinates"].startswith("pixels")
    tree = collection["features"][1]
    assert tree["properties"] == {
        "class": "tree",
        "index": 1,
        "area_pixels": 85,
        "mean_probability": pytest.approx(result.masks()[1].probability, abs=1e-6),
        "coordinates": "pixels",
    }
    assert [one["geometry"]["type"] for one in collection["features"]] == [
        "Polygon", "MultiPolygon", "Polygon",
    ]  # fmt: skip
    for feature, instance in zip(collection["features"], result.masks(), strict=True):
        geometry = shape(feature["geometry"])
        assert geometry.is_valid
        assert geometry.area == instance.area
    assert json.loads(json.dumps(collection)) == collection


def test_geojson_on_the_earth_is_in_degrees_and_turns_the_right_way() -> None:
    """Rows in UTM go south; ten metres a pixel. By transform and by ground control points."""
    transform = Affine(10, 0, 500_000, 0, -10, 5_500_000)
    points = tuple(
        GroundControlPoint(row, column, *(transform @ (column, row)))
        for row, column in ((0, 0), (0, 30), (20, 0), (20, 30))
    )
    labels = framed().labels
    by_transform = Georeference("EPSG:32632", transform)
    by_points = Georeference(gcps=points, gcps_crs="EPSG:32632")
    for place in (by_transform, by_points):
        collection = segmentation(labels, place).to_geojson(tolerance=0)
        assert collection["coordinates"].startswith("degrees")
        for feature in collection["features"]:
            geometry = shape(feature["geometry"])
            assert geometry.is_valid
            parts = getattr(geometry, "geoms", [geometry])
            assert all(part.exterior.is_ccw for part in parts)
            assert not any(hole.is_ccw for part in parts for hole in part.interiors)
        left, bottom, right, top = shape(collection["features"][0]["geometry"]).bounds
        # 500,000 m is the middle meridian of zone 32, 9° east; 200 m are 0.0018° of latitude.
        assert left == pytest.approx(9, abs=1e-7)
        assert right == pytest.approx(9.00417, abs=1e-4)
        assert top - bottom == pytest.approx(0.0018, rel=0.01)
        assert top == pytest.approx(49.653, abs=0.01)


def test_geojson_refuses_what_has_no_place_on_the_earth_and_what_it_lacks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    labels = framed().labels
    no_system = segmentation(labels, Georeference(transform=Affine.translation(5, 5)))
    assert no_system.to_geojson()["coordinates"].startswith("pixels")
    far = Affine(1e6, 0, 1e12, 0, -1e6, 1e12)
    with pytest.raises(
        ValueError, match="got some that have none by EPSG:32632.*check the image's"
    ):
        segmentation(labels, Georeference("EPSG:32632", far)).to_geojson()
    monkeypatch.setitem(sys.modules, "resclip.io.raster", None)
    with pytest.raises(ImportError, match=r'expected rasterio.*pip install "resclip\[geo\]"'):
        segmentation(labels, Georeference("EPSG:32632", Affine.identity())).to_geojson()


def test_supervision_gets_boxes_masks_and_names(monkeypatch: pytest.MonkeyPatch) -> None:
    result = framed()
    instances = result.masks()
    for most in (1 << 28, 0):
        monkeypatch.setattr(tables, "MOST_BYTES", most)
        detections = result.to_supervision()
        assert detections.xyxy[1].tolist() == [5, 5, 16, 16]
        assert detections.class_id.tolist() == [0, 1, 0]
        assert detections["class_name"].tolist() == ["sky", "tree", "sky"]
        np.testing.assert_allclose(detections.confidence, [one.probability for one in instances])
        masks = np.asarray(detections.mask)
        np.testing.assert_array_equal(masks, np.stack([one.mask for one in instances]))


def test_pandas_gets_a_row_for_each_class() -> None:
    result = framed()
    table = result.to_pandas()
    assert table["name"].tolist() == list(NAMES)
    assert table["pixels"].tolist() == [505, 85, 0, 0, 0]
    assert table["instances"].tolist() == [2, 1, 0, 0, 0]
    assert table["area"].sum() == pytest.approx(1)
    assert table["mean_probability"].isna().tolist() == [False, False, True, True, True]


@pytest.mark.parametrize(("package", "call"), [("pandas", "to_pandas"), ("supervision", "to_supervision")])  # fmt: skip
def test_a_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, package: str, call: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf'{package}.*pip install "resclip\[formats\]"'):
        getattr(framed(), call)()


def test_numpy_sees_the_labels() -> None:
    result = framed()
    np.testing.assert_array_equal(np.asarray(result), result.labels)
    assert np.asarray(result) is result.labels
    assert np.asarray(result, dtype=np.int16).dtype == np.int16
    copied = np.array(result, copy=True)
    assert not np.shares_memory(copied, result.labels)
    with pytest.raises(ValueError, match="without a copy"):
        result.__array__(np.dtype(np.uint8), copy=False)


def test_notebooks_show_the_sheet_and_escaped_names() -> None:
    labels = framed().labels
    labels[0, 0] = 2
    result = segmentation(labels)
    with Image.open(io.BytesIO(result._repr_png_())) as image:
        assert image.size == result.sheet().size
    text = result._repr_html_()
    assert "&lt;b&gt;&#x27;cat&#x27; &amp; &quot;dog&quot;&lt;/b&gt;" in text
    assert "<b>" not in text
    assert "data:image/png;base64," in text
    many = segmentation(np.arange(300).reshape(20, 15), names=tuple(map(str, range(300))))
    assert "and 200 more" in many._repr_html_()


def test_an_overlay_may_have_its_legend() -> None:
    result = framed()
    plain, with_legend = result.overlay(), result.overlay(legend=True)
    assert with_legend.width > plain.width + 50
    np.testing.assert_array_equal(
        np.asarray(with_legend)[: plain.height, : plain.width], np.asarray(plain)
    )

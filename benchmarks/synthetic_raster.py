"""One very large image, sewn from drawn scenes: `python -m benchmarks synthetic-raster --side 30000 --out quilt.tif`.

It is a georeferenced TIFF of tiles, written in bounded memory: something large to try segmentation on.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from resclip.builtin.scenes import render_scene

PATCH = 512
"""Height and width in pixels of a scene and of a tile."""
SCENES = 200
"""Different scenes, 157 MB of them: at 0.3 s each the 3,481 tiles of 30,000 pixels would take 17 minutes to draw."""
FAMILY = 44
"""The first word of the scenes' seeds, which no training and no evaluation uses."""


def sew(path: Path, side: int, seed: int = 0) -> None:
    """Write the raster of this seed: side x side pixels, RGB, deflate, EPSG:3857 at 1 m a pixel, whole or not at all.

    Scenes of 512 pixels lie side by side, cut at the right and lower edge; every one of the first 200 comes before one
    comes again.

    Raises:
        ValueError: `side` is below 1 or `seed` below 0.
        OSError: the file cannot be written.
        ImportError: rasterio is missing.
    """
    from resclip.io.files import NewFile
    from resclip.io.geotiff import cache_for, gdal

    if side < 1 or seed < 0:
        raise ValueError(
            f"expected a side of at least 1 and a seed of at least 0, got {side}, {seed}"
        )
    across = -(-side // PATCH)
    count = min(SCENES, across**2)
    order = np.random.default_rng([FAMILY, seed]).permutation(across**2) % count
    drawn = (np.random.default_rng([FAMILY, seed, number]) for number in range(count))
    scenes = [render_scene(generator, PATCH).image for generator in tqdm(drawn, "scenes", count)]
    with NewFile(path) as file:
        with gdal(cache_for(across * PATCH * PATCH * 3)) as rasterio:
            metres = rasterio.Affine(1.0, 0.0, 0.0, 0.0, -1.0, side)
            with rasterio.open(
                file.path, "w", driver="GTiff", height=side, width=side, count=3, dtype="uint8",
                photometric="RGB", tiled=True, blockxsize=PATCH, blockysize=PATCH,
                compress="deflate", predictor=2, zlevel=1, bigtiff="IF_SAFER",
                crs="EPSG:3857", transform=metres,
            ) as dataset:  # fmt: skip
                for position in tqdm(range(across**2), "tiles"):
                    top, left = position // across * PATCH, position % across * PATCH
                    tile = scenes[order[position]][: side - top, : side - left]
                    window = rasterio.windows.Window(left, top, tile.shape[1], tile.shape[0])
                    dataset.write(np.ascontiguousarray(tile.transpose(2, 0, 1)), window=window)
        file.publish()


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks synthetic-raster", description=__doc__.split("\n", maxsplit=1)[0]
    )
    parser.add_argument("--side", type=int, default=30000, help="pixels (default: 30000)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="a .tif")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes and their order")
    options = parser.parse_args(argv)
    try:
        sew(options.out, options.side, options.seed)
    except (ValueError, OSError, ImportError) as error:
        parser.error(str(error))
    return 0

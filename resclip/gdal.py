"""The one door to rasterio and GDAL: their memory bounded, their errors OSErrors.

Knows GDAL's settings. Knows no picture and no label. Importing it where rasterio is missing says what to install.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

try:
    import rasterio
    import rasterio.shutil
    from rasterio._err import (
        CPLE_BaseError,
    )  # What rasterio.shutil raises, and no other name for it.
    from rasterio.errors import RasterioError
except ImportError as error:
    raise ImportError(
        "expected rasterio, for pictures that are read or written by block, got none that can be "
        f'imported ({error}); pip install "resclip[geo]"'
    ) from error


CACHE_BYTES = 64 << 20
"""GDAL's cache of decoded blocks; of its own accord it takes 5% of the machine's memory."""


def cache_for(row_of_blocks: int) -> int:
    """Bytes of cache for a raster of which one row of blocks takes so many bytes.

    Rows are read and written in runs that cross from one row of blocks to the next: with less than two of them every
    block would be decoded again for each run.
    """
    return max(CACHE_BYTES, 2 * row_of_blocks)


@contextmanager
def gdal(cache: int = CACHE_BYTES, **options: Any) -> Iterator[Any]:
    """rasterio, with GDAL set up for this thread; everything that GDAL says is wrong is raised as an OSError.

    Args:
        cache: bytes of GDAL's cache of blocks, which all rasters of the process share.
        options: GDAL's own settings, by name.

    Raises:
        OSError: GDAL failed; the reason alone, without errno and the file's name.
    """
    try:
        with rasterio.Env(GDAL_CACHEMAX=cache, **options):
            yield rasterio
    except (RasterioError, CPLE_BaseError) as error:
        # rasterio's own words are often just "See previous exception for details."
        raise OSError(str(error.__cause__ or error)) from error

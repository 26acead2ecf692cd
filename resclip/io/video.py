"""Videos: which frames there are, their pixels one after another, and a video of pictures, by PyAV.

Only files of this machine are opened, as one of `CONTAINERS`: playlists and the like, which name further files, are not
among them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resclip.errors import reason
from resclip.io.errors import MAX_PIXELS, ImageError, check_file, check_whole
from resclip.io.limits import DEFAULT_LIMITS, Limits
from resclip.io.resize import PixelArray

if TYPE_CHECKING:
    from types import ModuleType

    from typing_extensions import Self

VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts", ".ogv", ".wmv", ".flv",
    ".3gp", ".mxf",
)  # fmt: skip

CONTAINERS = "mov,matroska,webm,avi,mpeg,mpegts,ogg,asf,flv,mxf"
"""FFmpeg's names of the containers that are read."""

LEAST_LIMIT = 1 << 16
"""A decoder may always take so many pixels: small frames are rounded up by more than twice."""

USUAL_RATE = Fraction(25)
"""Frames a second of a video that says nothing of them."""

QUALITY = "20"
"""The constant rate factor of H.264, from 0 to 51: 20 is close to the pictures that went in."""


@dataclass(frozen=True)
class Every:
    """Which frames of a video are taken; the first always is.

    Args:
        frames: every so many-th, at least 1.
        seconds: or the first one in each so many seconds, above 0.

    Raises:
        ValueError: a number below these.
    """

    frames: int = 1
    seconds: Fraction | None = None

    def __post_init__(self) -> None:
        if self.frames < 1 or (self.seconds is not None and self.seconds <= 0):
            raise ValueError("every must be a whole number of frames from 1, or seconds above 0")

    def rate(self, rate: Fraction) -> Fraction:
        """Taken frames a second, of so many frames a second."""
        return rate / self.frames if self.seconds is None else min(rate, 1 / self.seconds)


def parse_every(text: str) -> Every:
    """Every fifth frame of "5"; of "2s" or "0.5s" one in each so many seconds.

    Raises:
        ValueError: it is neither.
    """
    with contextlib.suppress(ValueError, ZeroDivisionError):
        if text.endswith("s"):
            return Every(seconds=Fraction(text[:-1]))
        return Every(int(text))
    raise ValueError(
        f"expected every how many frames, such as 5, or seconds, such as 2s, got {text[:40]!r}"
    )


@dataclass(frozen=True)
class Frames:
    """The frames of a video that are taken.

    Attributes:
        numbers: of the taken ones, from 0, in the order in which they are shown.
        total: of all frames.
        rate: of the taken ones, a second, on average.
    """

    numbers: list[int]
    total: int
    rate: Fraction


def find_frames(path: Path, name: str, every: Every) -> Frames:
    """Which frames a video has, without decoding them.

    Args:
        path: of the video.
        name: what errors call it.
        every: which of its frames are taken.

    Raises:
        ImageError: no video, none without a stream of pictures or frames, or a damaged one.
        ImportError: PyAV is missing.
    """
    with _opened(path, name) as (container, stream):
        times = _times(container, stream, name)
        rate = Fraction(stream.average_rate or stream.guessed_rate or USUAL_RATE)
        base = Fraction(stream.time_base or 1)
    if every.seconds is None:
        numbers = list(range(0, len(times), every.frames))
    else:
        numbers = []
        following = None
        for number, time in enumerate(times):
            moment = number / rate if time is None else (time - (times[0] or 0)) * base
            if following is None or moment >= following:
                numbers.append(number)
                following = (math.floor(moment / every.seconds) + 1) * every.seconds
    return Frames(numbers, len(times), every.rate(rate))


class FrameReader:
    """The pixels of frames, of one video after another; going forward costs only what lies between.

    Args:
        limits: of a frame.
    """

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self.limits = limits
        self._path: Path | None = None
        self._frames: Iterator[tuple[int, Any]] = iter(())
        self._next: tuple[int, Any] | None = None
        self._asked = -1
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, path: Path, number: int, name: str) -> PixelArray:
        """(H, W, 3) uint8: a frame, upright.

        Args:
            path: of the video.
            number: of the frame, from 0.
            name: what errors call it.

        Raises:
            ImageError: the video is no longer there, ends before it, is damaged there or has too many pixels.
            ImportError: PyAV is missing.
        """
        if path != self._path or number < self._asked:
            self._open(path, name)
        self._asked = number
        while self._next is None or self._next[0] < number:
            try:
                self._next = next(self._frames, None)
            except ImageError:
                self.close()
                raise
            except Exception as error:
                self.close()
                raise ImageError(f"{name}: {_damaged(error)}") from error
            if self._next is None:
                # Kept as it is: each of the frames that are missing would read the whole again.
                raise ImageError(
                    f"{name}: expected a frame {number}, the video ends before; it is cut short or damaged"
                )
        found, frame = self._next
        if found != number:
            raise ImageError(
                f"{name}: expected a frame {number}, got none that can be decoded; the video is damaged there"
            )
        check_whole(frame.width, frame.height, name, self.limits)
        pixels: PixelArray = frame.to_ndarray(format="rgb24")
        # The rotation is counter-clockwise, in degrees.
        turns = round(getattr(frame, "rotation", 0) / 90) % 4
        return np.ascontiguousarray(np.rot90(pixels, turns))

    def close(self) -> None:
        """Close the video that is open."""
        self._path = self._next = None
        self._frames = iter(())
        self._stack.close()

    def _open(self, path: Path, name: str) -> None:
        self.close()
        with _opened(path, name) as (container, stream):
            check_whole(stream.codec_context.width, stream.codec_context.height, name, self.limits)
            times = _times(container, stream, name)
        # Opened anew, since not every container can be gone back in.
        container, stream = self._stack.enter_context(_opened(path, name))
        # A frame may say another size than the file does. Codecs round sizes up, by less than twice.
        most = 2 * (self.limits.max_pixels or MAX_PIXELS)
        stream.codec_context.options = {"max_pixels": str(max(most, LEAST_LIMIT))}
        self._frames = _decoded(container, stream, times)
        self._path = path


class VideoWriter:
    """An MP4 of H.264 from pictures that come one after another.

    Its frames have the size of the first picture; where that is odd, its last row or column is there twice, since
    players need even sizes. Pictures of other sizes are scaled to it.

    Args:
        path: of the file, which is whole only after `close`.
        rate: pictures a second.

    Raises:
        ImportError: PyAV is missing, or the encoder of its FFmpeg.
        OSError: the file cannot be made.
    """

    def __init__(self, path: Path, rate: Fraction) -> None:
        av = _av()
        self._av = av
        self._container = av.open(str(path), "w", format="mp4")
        try:
            # What FFmpeg stores a rate in has 31 bits.
            self._stream = self._container.add_stream(
                "libx264", rate=rate.limit_denominator(1 << 16)
            )
        except ValueError as error:
            self._container.close()
            raise ImportError(
                "writing videos needs a PyAV whose FFmpeg has libx264, as that of its wheels has; "
                "pip install --force-reinstall av"
            ) from error
        self._stream.pix_fmt = "yuv420p"
        self._stream.options = {"crf": QUALITY}
        self._size: tuple[int, int] | None = None

    def add(self, pixels: PixelArray) -> None:
        """(H, W, 3) uint8: the next picture."""
        from PIL import Image

        if self._size is None:
            self._size = pixels.shape[:2]
            height, width = self._size
            self._stream.height, self._stream.width = height + height % 2, width + width % 2
        height, width = self._size
        if pixels.shape[:2] != self._size:
            pixels = np.asarray(Image.fromarray(pixels).resize((width, height)))
        pixels = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), "edge")
        frame = self._av.VideoFrame.from_ndarray(pixels, format="rgb24")
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Write what is still to be written."""
        if self._size is not None:
            self._container.mux(self._stream.encode())
        self._container.close()


def _av() -> ModuleType:
    try:
        import av
    except ImportError as error:
        raise ImportError(
            'videos need PyAV, which is not installed; pip install "resclip[video]"'
        ) from error
    return av


@contextlib.contextmanager
def _opened(path: Path, name: str) -> Iterator[tuple[Any, Any]]:
    """The container of a video and its stream of pictures."""
    av = _av()
    check_file(path, name)
    with contextlib.ExitStack() as stack:
        try:
            # As an open file: a path could be taken for one of FFmpeg's protocols.
            file = stack.enter_context(path.open("rb"))
            container = av.open(file, options={"format_whitelist": CONTAINERS})
            stack.enter_context(container)
        except Exception as error:
            raise ImageError(f"{name}: {_damaged(error)}") from error
        if not container.streams.video:
            kinds = sorted({stream.type for stream in container.streams})
            came = f"a file with {', '.join(kinds)} alone" if kinds else "one without frames"
            raise ImageError(f"{name}: expected a video, got {came}; name another")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise ImageError(
                f"{name}: expected a video of a known kind, got one that FFmpeg cannot decode; convert it to H.264"
            )
        stream.thread_type = "AUTO"
        yield container, stream


def _times(container: Any, stream: Any, name: str) -> list[int | None]:
    """When each frame is shown, in the stream's units, in order; None where that is not known."""
    times: list[int | None] = []
    try:
        packets = container.demux(stream)
        times.extend(one.pts for one in packets if one.size and not one.is_discard)
    except Exception as error:  # Cut short: what came is what there is.
        if not times:
            raise ImageError(f"{name}: {_damaged(error)}") from error
    if not times:
        raise ImageError(f"{name}: expected a video, got one without frames; name another")
    known = [time for time in times if time is not None]
    return sorted(known) if len(set(known)) == len(times) else [None] * len(times)  # type: ignore[return-value]


def _decoded(container: Any, stream: Any, times: list[int | None]) -> Iterator[tuple[int, Any]]:
    """Frames with their numbers; those that cannot be decoded are left out.

    A frame is known by when it is shown, so that a damaged one does not shift the numbers of the others; where that is
    not known, by the order.
    """
    numbers = {time: number for number, time in enumerate(times) if time is not None}
    count = -1
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except Exception:  # noqa: BLE001 - whatever a decoder says of a damaged packet.
            continue
        for frame in frames:
            count += 1
            number = numbers.get(frame.pts) if numbers else count
            if number is not None:
                yield number, frame


def _damaged(error: BaseException) -> str:
    # FFmpeg's own words, without the number and the path that PyAV puts around them.
    why = getattr(error, "strerror", None) or reason(error)
    return (
        "expected a video, got a file that is cut short, damaged or none "
        f"({why[:120]}); get it again, or convert it to MP4"
    )

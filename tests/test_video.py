"""Videos: their frames are images like any other, damaged ones one sentence, and what is seen in them a video again."""

from __future__ import annotations

import json
import struct
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("av", reason='needs PyAV: pip install "resclip[video]"')
pytest.importorskip("pyarrow", reason='needs pyarrow: pip install "resclip[batch]"')

import av
from batch_support import files_in, rows_of, toy_segmenter
from cli_support import StandIn, names_in, run
from PIL import Image

from resclip.batch.output_names import SUMMARY
from resclip.batch.sources import open_source
from resclip.batch.steps import Frame, with_frames
from resclip.io.errors import ImageError
from resclip.io.limits import DEFAULT_LIMITS, Limits
from resclip.io.video import Every, FrameReader, VideoWriter, find_frames, parse_every

SIZE = (40, 64)  # A height and width that codecs take.
COUNT = 12
RATE = 10
# Codec and pixel format by the file's name: with and without frames that come later than they are shown.
FORMS = {
    "clip.mp4": ("libx264", "yuv420p"),
    "clip.mkv": ("ffv1", "bgr0"),
    "clip.avi": ("mpeg4", "yuv420p"),
    "clip.ts": ("libx264", "yuv420p"),
    "clip.mov": ("mpeg4", "yuv420p"),
}


def picture(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """The number, in the brightness of the left half; the right one is dark red."""
    pixels = np.full((*size, 3), 20 + number * 10, np.uint8)
    pixels[:, size[1] // 2 :] = [90, 10, 10]
    return pixels


def number_in(pixels: np.ndarray) -> int:
    height, width = pixels.shape[:2]
    left = pixels[height // 4 : -height // 4, width // 8 : width // 4]
    return round((float(left.mean()) - 20) / 10)


def make_video(path: Path, count: int = COUNT, times: list[int] | None = None) -> Path:
    """A video of `count` pictures, at tenths of a second or at `times`, in these units."""
    codec, pixel_format = FORMS[f"clip{path.suffix}"]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE)
        stream.height, stream.width = SIZE
        stream.pix_fmt = pixel_format
        if codec == "ffv1":
            stream.codec_context.gop_size = 1  # Each picture is coded by itself.
        container.start_encoding()
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            if times is not None:
                frame.time_base = Fraction(1, RATE)
                frame.pts = times[number]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("clips")
    return {name: make_video(folder / name) for name in FORMS}


@pytest.mark.parametrize("name", FORMS)
def test_frames_are_found_and_read_in_any_order(name: str, clips: dict[str, Path]) -> None:
    found = find_frames(clips[name], "clip", Every())
    assert found.numbers == list(range(COUNT))
    assert (found.total, found.rate) == (COUNT, RATE)
    with FrameReader() as frames:
        for number in [*range(COUNT), 3, 3, 7, 0, COUNT - 1]:
            pixels = frames.read(clips[name], number, "clip")
            assert pixels.shape == (*SIZE, 3)
            assert pixels.flags.c_contiguous
            assert number_in(pixels) == number
            if name.endswith("mkv"):  # Without loss.
                np.testing.assert_array_equal(pixels, picture(number))


@pytest.mark.parametrize(
    ("text", "numbers", "rate"),
    [
        ("1", range(12), 10),
        ("5", (0, 5, 10), 2),
        ("99", (0,), Fraction(10, 99)),
        ("0.5s", (0, 5, 10), 2),
        ("1s", (0, 10), 1),
        ("0.01s", range(12), 10),
    ],
)
def test_every_so_many_frames_or_seconds(
    text: str, numbers: Any, rate: Fraction, clips: dict[str, Path]
) -> None:
    for name in ("clip.mp4", "clip.avi", "clip.ts"):
        found = find_frames(clips[name], "clip", parse_every(text))
        assert found.numbers == list(numbers)
        assert found.rate == rate


@pytest.mark.parametrize("text", ["0", "-1", "0s", "-2s", "s", "two", "1.5", "1/0s", "nans"])
def test_wrong_every(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="every how many frames"):
        parse_every(text)
    assert run("batch", "clip.mp4", "--out", "o", "--classes", "a, b", f"--every={text}") == 2
    assert "--every: expected every how many frames" in capsys.readouterr().err


def test_frames_at_uneven_times(tmp_path: Path) -> None:
    times = [0, 1, 2, 3, 15, 16, 30, 31, 32, 33, 60, 61]
    path = make_video(tmp_path / "clip.mkv", times=times)
    assert find_frames(path, "clip", parse_every("1s")).numbers == [0, 4, 6, 10]


# The matrices that players turn pictures by, clockwise: a, b, c, d of a track's header.
@pytest.mark.parametrize(
    ("turns", "matrix"),
    [(0, (1, 0, 0, 1)), (1, (0, 1, -1, 0)), (2, (-1, 0, 0, -1)), (3, (0, -1, 1, 0))],
)
def test_a_video_that_was_taken_upright(
    turns: int, matrix: tuple[int, ...], clips: dict[str, Path], tmp_path: Path
) -> None:
    data = clips["clip.mp4"].read_bytes()
    at = data.index(b"tkhd") + 4 + 40
    a, b, c, d = (value << 16 for value in matrix)
    turned = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    (tmp_path / "turned.mp4").write_bytes(data[:at] + turned + data[at + 36 :])
    with FrameReader() as frames:
        pixels = frames.read(tmp_path / "turned.mp4", 4, "clip")
        upright = frames.read(clips["clip.mp4"], 4, "clip")
    np.testing.assert_array_equal(pixels, np.rot90(upright, -turns))


def make_sound(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))


def test_what_is_no_video_is_one_sentence(
    clips: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = clips["clip.mp4"].read_bytes()
    make_sound(tmp_path / "sound.mov")
    make_video(tmp_path / "none.mov", 0)
    make_video(tmp_path / "none.avi", 0)
    make_video(tmp_path / "near.ts")
    files = {
        "cut.mp4": (data[: len(data) // 2], "cut short, damaged or none"),
        "text.mp4": (b"dear diary", "cut short, damaged or none"),
        "empty.mp4": (b"", "empty file"),
        # What names other files, or is read by them.
        "list.mp4": (f"#EXTM3U\n#EXTINF:5,\n{clips['clip.ts']}\n".encode(), "damaged or none"),
        "cat.mp4": (b"ffconcat version 1.0\nfile near.ts\n", "damaged or none"),
        "sound.mov": (None, "a file with audio alone"),
        "none.mov": (None, "without frames"),
        "none.avi": (None, "without frames"),
        "missing.mp4": (None, "found nothing"),
    }
    for name, (content, words) in files.items():
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises((ValueError, OSError), match=words) as caught:
            open_source(str(path))
        assert name in f"{caught.value} {getattr(caught.value, 'filename', '')}"
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="download it first"):
        open_source("https://example.org/clip.mp4?token=x")
    with pytest.raises(ValueError, match="leave every= out"):
        open_source(str(tmp_path), every=Every(2))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"resclip\[video\]"):
        open_source(str(clips["clip.mp4"]))


def test_frames_that_are_damaged_fail_alone(clips: dict[str, Path], tmp_path: Path) -> None:
    """The fourth of the pictures, each of which is coded by itself; and a file that was cut since it was looked at."""
    data = bytearray(clips["clip.mkv"].read_bytes())
    with av.open(str(clips["clip.mkv"])) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        at = data.index(bytes(packets[4]))
        data[at : at + packets[4].size] = bytes(packets[4].size)
    path = tmp_path / "clip.mkv"
    path.write_bytes(data)
    source = open_source(str(path))
    assert len(source.items) == COUNT
    came = list(with_frames(source.items, DEFAULT_LIMITS))
    bad = [one for one in came if isinstance(one, Frame) and isinstance(one.pixels, ImageError)]
    assert [one.item.frame for one in bad] in ([], [4])  # FFmpeg may conceal it.
    good = [
        one for one in came if isinstance(one, Frame) and not isinstance(one.pixels, ImageError)
    ]
    assert all(number_in(one.pixels) == one.item.frame for one in good if one.item.frame != 4)
    path.write_bytes(clips["clip.mkv"].read_bytes()[: packets[8].pos])
    came = list(with_frames(source.items, DEFAULT_LIMITS))
    errors = [str(one.pixels) for one in came if isinstance(one.pixels, ImageError)]  # type: ignore[union-attr]
    assert 3 <= len(errors) <= 5
    assert all("the video ends before" in error and "clip/0000" in error for error in errors)
    path.unlink()
    with pytest.raises(ImageError, match="no such file"), FrameReader() as frames:
        source.items[0].pixels(frames)


def test_frames_are_read_as_they_are_needed(clips: dict[str, Path]) -> None:
    source = open_source(str(clips["clip.mkv"]))
    read = []

    class Counting(FrameReader):
        def read(self, path: Path, number: int, name: str) -> Any:
            read.append(number)
            return super().read(path, number, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("resclip.batch.steps.FrameReader", Counting)
        stream = with_frames(source.items, DEFAULT_LIMITS)
        next(stream)
        next(stream)
    assert read == [0, 1]
    (frame,) = list(with_frames(source.items[:1], Limits(max_pixels=99)))
    assert isinstance(frame, Frame)
    assert "at most 99 pixels" in str(frame.pixels)


@pytest.mark.parametrize("size", [(40, 64), (41, 63), (1, 1), (33, 64)])
def test_pictures_become_a_video_of_even_size(size: tuple[int, int], tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    writer = VideoWriter(path, Fraction(30000, 1001))
    for number in range(9):
        # A picture of another size among them.
        writer.add(picture(number, (20, 32) if number == 5 else size))
    writer.close()
    found = find_frames(path, "clip", Every())
    assert (found.total, found.rate) == (9, Fraction(30000, 1001))
    with FrameReader() as frames:
        for number in range(9):
            pixels = frames.read(path, number, "clip")
            assert pixels.shape == (size[0] + size[0] % 2, size[1] + size[1] % 2, 3)
            if min(size) > 1:
                assert number_in(pixels) == number


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resclip.loading.load", lambda *_, **__: toy_segmenter(pad_batches=True))


def batch(source: object, out: object, *options: object) -> int:
    return run("batch", source, "--out", out, "--classes", "cat; dog; grass", *options)


def test_a_video_is_segmented_frame_by_frame_and_goes_on(
    toy: None, clips: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert batch(clips["clip.mp4"], out, "--every", 4) == 0
    assert "3 frames of 12\n" in capsys.readouterr().err
    assert list(files_in(out)) == [f"clip/{number:06d}_labels.png" for number in (0, 4, 8)]
    with FrameReader() as frames:
        pixels = frames.read(clips["clip.mp4"], 4, "clip")
    labels = np.asarray(Image.open(out / "clip/000004_labels.png"))
    np.testing.assert_array_equal(labels, toy_segmenter(pad_batches=True).segment(pixels).labels)
    # More of them: those that are there are not done again, and the video shows all.
    assert batch(clips["clip.mp4"], out, "--every", 2, "--video") == 0
    assert "3 of 6 images done, 3 earlier" in capsys.readouterr().err
    assert [row["name"] for row in rows_of(out)] == [
        f"clip/{number:06d}" for number in range(0, 12, 2)
    ]
    video = out / "clip_overlay.mp4"
    found = find_frames(video, "overlay", Every())
    assert (found.total, found.rate) == (6, 5)
    with FrameReader() as frames:
        shown = frames.read(video, 3, "overlay")
        pixels = frames.read(clips["clip.mp4"], 6, "clip")
    assert shown.shape == pixels.shape
    assert np.abs(shown.astype(int) - pixels).mean() > 10
    assert json.loads((out / SUMMARY).read_text())["counts"]["skipped"] == 3
    # A folder has images; the videos in it are other files.
    Image.new("RGB", (64, 40)).save(out / "one.png")
    source = open_source(str(out))
    assert [item.name for item in source.items] == ["one.png"]


def test_what_does_not_fit_a_video(
    toy: None, clips: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip, image = clips["clip.mp4"], tmp_path / "one.png"
    Image.new("RGB", (64, 40)).save(image)
    cases = {
        (clip, "--engine", "ray"): "frames are read one after another, got ray",
        (clip, "--video", "--format", "tif"): "expected --format png for --video",
        (image, "--video"): "expected a video for --video, got file",
        (image, "--every", "2"): "expected a video for --every, got an image; leave --every out",
    }
    for (source, *options), words in cases.items():
        assert batch(source, tmp_path / "out", *options) == 2
        told = capsys.readouterr().err
        assert words in told
        assert told.count("\n") == 1


def test_segment_takes_videos_too(
    stand_in: StandIn, clips: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["segment", clips["clip.mkv"], "--classes", "a, b", "--out", tmp_path, "--no-overlay"]
    seen: list[int] = []
    stand_in.fail = lambda pixels: seen.append(number_in(pixels))
    assert run(*where, "--every", "0.4s") == 0
    assert seen == [0, 4, 8]
    assert names_in(tmp_path / "clip")[:2] == ["000000.json", "000000_labels.png"]
    assert capsys.readouterr().out.startswith("clip/000000: a 50%, b 50%")

"""Masks in MATLAB files, against SciPy's writer; damaged ones in any way."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from resclip.evaluation.datasets.base import IGNORED, Values
from resclip.evaluation.datasets.context import LabelMapFile, read_matrix
from resclip.io.images import ImageError

VALUES = Values({1: 0, 459: 1}, frozenset({0}))


def swapped(values: np.ndarray) -> bytes:
    """A file as a machine of the other byte order writes it: savemat has only this one's."""

    def element(kind: int, content: bytes) -> bytes:
        return struct.pack(">II", kind, len(content)) + content + bytes(-len(content) % 8)

    parts = [
        element(6, struct.pack(">II", 11, 0)),  # Flags: an array of 16-bit numbers.
        element(5, struct.pack(">ii", *values.shape)),
        element(1, b"LabelMap"),
        element(4, values.astype(">u2").tobytes(order="F")),
    ]
    header = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack(">H", 0x0100) + b"MI"
    return header + element(14, b"".join(parts))


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize(
    "shape",
    # The last two take 4 bytes or fewer as uint8: the format has a short form for them.
    [(3, 5), (7, 2), (64, 33), (1, 1), (2, 2)],
)
def test_what_scipy_writes_is_read(
    tmp_path: Path, shape: tuple[int, int], dtype: type, compressed: bool
) -> None:
    matrix = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    others = {"Before": np.ones((2, 3)), "LabelMa": np.zeros(9), "names": "cat", "cells": {"a": 1}}
    content = {**others, "LabelMap": matrix, "x": 1.0}
    savemat(tmp_path / "mask.mat", content, do_compression=compressed)
    found = read_matrix(tmp_path / "mask.mat", "LabelMap")
    assert found.shape == shape
    np.testing.assert_array_equal(found, matrix)


def test_the_other_byte_order(tmp_path: Path) -> None:
    matrix = np.arange(15).reshape(3, 5) * 30
    (tmp_path / "mask.mat").write_bytes(swapped(matrix))
    np.testing.assert_array_equal(read_matrix(tmp_path / "mask.mat", "LabelMap"), matrix)


def test_labels_are_those_of_the_values(tmp_path: Path) -> None:
    savemat(tmp_path / "mask.mat", {"LabelMap": np.array([[0, 1, 459], [459, 0, 0]], np.uint16)})
    labels = LabelMapFile(tmp_path / "mask.mat", VALUES).read()
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, [[IGNORED, 0, 1], [1, IGNORED, IGNORED]])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"LabelMap": np.array([[1, 2, 3, 460]])},
            "among 0 to 1, 459, got 2, 3, 460 in 3 pixels; check that",
        ),
        ({"LabelMap": np.array([[1, -1]])}, "whole numbers from 0 to 65535; check"),
        ({"LabelMap": np.array([[1, 65537]])}, "whole numbers from 0 to 65535"),
        ({"LabelMap": np.array([[1.5]])}, "whole numbers"),
        ({"LabelMap": np.array([[np.nan]])}, "whole numbers"),
        ({"LabelMap": np.zeros((0, 3))}, "whole numbers"),
        ({"LabelMap": np.ones((2, 3, 4))}, r"its sizes are \[2, 3, 4\]"),
        ({"LabelMap": np.ones((2, 2)) * 1j}, "it is no plain matrix of numbers"),
        ({"LabelMap": "cat"}, "it is no plain matrix of numbers"),
        ({"LabelMap": {"a": 1}}, "it is no plain matrix of numbers"),
        ({"labels": np.ones((2, 3))}, "it has no LabelMap"),
    ],
)
def test_matrices_that_are_no_masks(tmp_path: Path, content: dict, message: str) -> None:
    savemat(tmp_path / "mask.mat", content)
    with pytest.raises(ImageError, match=rf"mask\.mat: expected .*{message}"):
        LabelMapFile(tmp_path / "mask.mat", VALUES).read()


def test_files_of_other_kinds(tmp_path: Path) -> None:
    path = tmp_path / "mask.mat"
    with pytest.raises(ImageError, match=r"mask\.mat: no such file; check the dataset"):
        LabelMapFile(path, VALUES).read()
    newer = b"MATLAB 7.3 MAT-file".ljust(124) + struct.pack("<H", 0x0200) + b"IM"
    for content in (b"", b"no mask", b"no mask" * 40, newer):
        path.write_bytes(content)
        with pytest.raises(ImageError, match="it is no MATLAB file of version 5 to 7.*file again"):
            LabelMapFile(path, VALUES).read()
    with pytest.raises(ImageError, match="cannot be read .*get the file again"):
        LabelMapFile(tmp_path, VALUES).read()


@pytest.mark.parametrize("compressed", [True, False])
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, compressed: bool) -> None:
    path = tmp_path / "mask.mat"
    savemat(path, {"LabelMap": np.ones((5, 7), np.uint16)}, do_compression=compressed)
    data = path.read_bytes()
    padding = 0 if compressed else 8  # At the end, after the numbers: nothing is lost with it.
    for length in range(len(data) - padding):
        path.write_bytes(data[:length])
        message = "it is cut short" if length > 128 else "no MATLAB file|it has no LabelMap"
        with pytest.raises(ImageError, match=f"({message}).*; get the file again"):
            LabelMapFile(path, VALUES).read()


def test_a_file_made_to_exhaust_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mask.mat"
    savemat(path, {"LabelMap": np.ones((100, 100), np.uint16)}, do_compression=True)
    assert path.stat().st_size < 1000
    read_matrix(path, "LabelMap")
    monkeypatch.setattr("resclip.evaluation.datasets.context._LARGEST", 20_000)
    with pytest.raises(ValueError, match="it is cut short or too large"):
        read_matrix(path, "LabelMap")


@pytest.mark.parametrize("compressed", [True, False])
def test_no_damage_does_more_than_an_error(tmp_path: Path, compressed: bool, seed: int) -> None:
    """One to three bytes are changed; sizes among them, on which SciPy's reader ends the process."""
    path = tmp_path / "mask.mat"
    matrix = np.ones((5, 7), np.uint16)
    savemat(path, {"LabelMap": matrix}, do_compression=compressed)
    data = path.read_bytes()
    random = np.random.default_rng(seed)
    outcomes = {True: 0, False: 0}
    for _ in range(500):
        damaged = bytearray(data)
        for place in random.integers(120, len(data), random.integers(1, 4)):
            damaged[place] = random.integers(256)
        path.write_bytes(damaged)
        try:
            found = LabelMapFile(path, VALUES).read()
        except ImageError:
            outcomes[False] += 1
        else:
            outcomes[True] += 1
            assert found.size == matrix.size
    assert outcomes[False] > 50

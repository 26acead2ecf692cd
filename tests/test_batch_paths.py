"""Locations as they may be shown, and what they mean beside others."""

from __future__ import annotations

import os

import fsspec
import pytest

from resclip.batch.paths import (
    is_pattern,
    join,
    naming,
    obstacle,
    parent,
    read_range,
    shown,
    split_pattern,
    suffix,
)


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("a/b.jpg", "a/b.jpg"),
        ("a?b#c.jpg", "a?b#c.jpg"),
        ("https://host/a b.jpg?sig=1#part", "https://host/a b.jpg"),
        ("https://user:word@host:8080/a@b.jpg?sig=1", "https://host:8080/a@b.jpg"),
        ("HTTPS://user@host", "HTTPS://host"),
        ("https://user:w@rd@host/a.jpg", "https://host/a.jpg"),
        ("https://user:wo/rd@host/a.jpg", "https://…"),
        ("https://user:wo?rd@host/a.jpg", "https://…"),
        ("https://host?sig=1", "https://host"),
        ("http://[::1]:80/a.jpg?sig", "http://[::1]:80/a.jpg"),
        ("http://[::1/a.jpg", "http://[::1/a.jpg"),
        ("s3://key:secret@bucket/a.jpg?versionId=1", "s3://bucket/a.jpg"),
        ("zip://a.jpg::https://u:p@host/a.zip?sig=1", "zip://a.jpg::https://host/a.zip"),
        ("simplecache::https://u:p@host/a.zip?sig=1", "simplecache::https://host/a.zip"),
        (os.fsdecode(b"caf\xe9\n\x1b[2J.jpg"), "caf%E9%0A%1B[2J.jpg"),
        ("évalué\u202fà 12.png", "évalué\u202fà 12.png"),
        ("gpj.\u202ea.png", "gpj.%E2%80%AEa.png"),
    ],
)
def test_shown(location: str, expected: str) -> None:
    assert shown(location) == expected
    assert shown(shown(location)) == expected


@pytest.mark.parametrize(
    ("folder", "text", "expected"),
    [
        ("https://host/d", "a:b.png", "https://host/d/a:b.png"),
        ("https://host/d", "file:/etc/passwd", "https://host/d/file:/etc/passwd"),
        ("https://host/d", "/a.png", "https://host/a.png"),
        ("https://host/d", "../a.png", "https://host/a.png"),
        ("https://host/d", "//other/a.png", "https://other/a.png"),
        ("https://host/d", "//[::1/a.png", "https://[::1/a.png"),
        ("https://host/d", "a.png?s=b/c", "https://host/d/a.png?s=b/c"),
        ("s3://bucket/d", "../e/a.png", "s3://bucket/e/a.png"),
    ],
)
def test_join_at_a_url(folder: str, text: str, expected: str) -> None:
    assert join(folder, text) == expected


def test_queries_are_no_part_of_names() -> None:
    assert parent("https://host/d/a.png?s=b/c") == "https://host/d"
    assert suffix("https://host/d/a.PNG?s=b/c.txt#d") == ".png"


@pytest.mark.parametrize(
    ("folder", "location", "words"),
    [
        ("lists", "/etc/passwd", None),
        ("lists", "https://host/a.png", None),
        ("https://host", "http://[::1]:80/a.png", None),
        ("https://host", "ftp://other/a.png", None),
        ("https://host", "/etc/passwd", "a path of this machine"),
        ("https://host", "memory://a.png", "other machines, got memory://a.png"),
        ("https://host", "https://u:p@host/a::file:///etc", "got https://host/a::file:///etc;"),
        ("lists", "https:///a.png", "malformed"),
        ("lists", "https://host:99999/a.png", "malformed"),
        ("lists", "https://host/\x1b.png", "malformed"),
        ("lists", "nobody://a.png", "nobody:// is not known"),
    ],
)
def test_what_a_list_may_name(folder: str, location: str, words: str | None) -> None:
    why = obstacle(folder, location)
    assert why is None if words is None else why is not None and words in why


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (FileNotFoundError("https://u:p@host/a?sig=1"), "No such file or directory"),
        (PermissionError("denied for https://u:p@host/a?sig=1"), "denied for https://host/a"),
        (RuntimeError("at <s3://k:p@b/a?sig=1>\n" + "x" * 900), "at <s3://b/a> xxx"),
        (OSError(5, "lost https://u:p@host/a?sig=1"), "lost https://host/a"),
        (ValueError("word=1 alone"), "cannot be read (word=1 alone)"),
    ],
)
def test_errors_of_file_systems_are_named_without_secrets(error: Exception, words: str) -> None:
    with pytest.raises(OSError, match=".") as caught, naming("s3://key:secret@bucket/a.jpg?sig=1"):
        raise error
    text = f"{caught.value!r} {caught.value}"
    assert caught.value.filename == "s3://bucket/a.jpg"
    assert words in text
    assert not any(secret in text for secret in ("sig=1", "secret", "u:p", "k:p"))
    assert len(text) < 700
    assert caught.value.__suppress_context__


def test_own_sentences_stay_as_they_are() -> None:
    for own in (ValueError("s3://b/a: expected, got"), OSError(5, "expected, got", "s3://b/a")):
        with pytest.raises(type(own)) as caught, naming("s3://k:p@b/a"):
            raise own
        assert caught.value is own


def test_a_limit_on_bytes_of_object_stores() -> None:
    from resclip.io.limits import Limits

    files = fsspec.filesystem("memory")
    files.pipe("/limits/a.jpg", bytes(101))
    for length in (None, 101):
        with pytest.raises(OSError, match="at most 100 bytes, got 101"):
            read_range("memory://limits/a.jpg", 0, length, Limits(max_bytes=100))
    assert len(read_range("memory://limits/a.jpg", limits=Limits(max_bytes=101))) == 101
    files.rm("/limits", recursive=True)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("http://[::1]:80/a.png", False),
        ("http://user:p*[{@host/a.png", False),
        ("https://host/a.png?key=*[{#*", False),
        ("https://[::1]/d/*.png", True),
        ("https://host/{1..2}.png", True),
    ],
)
def test_only_the_path_of_a_web_address_is_a_pattern(address: str, expected: bool) -> None:
    assert is_pattern(address) is expected
    if expected:
        folder, rest = split_pattern(address)
        assert f"{folder}/{rest}" == address
        assert not is_pattern(folder)


def test_a_package_that_fails_is_not_quoted() -> None:
    """Words about a program, such as "'NoneType' object has no attribute", help nobody."""
    with pytest.raises(OSError, match="fails with AttributeError; check the URL"), naming("x://y"):
        raise AttributeError("'NoneType' object has no attribute 'startswith'")

"""Servers that refuse, stall, lie or never end: one failure of plain words each, in bounded time and memory."""

from __future__ import annotations

import gzip
import http.server
import itertools
import socket
import struct
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from source_support import archive, errors

from resclip.batch import web
from resclip.batch.items import Identity, Item
from resclip.batch.parquet import Cell
from resclip.batch.paths import about, open_binary, read_range, read_start
from resclip.batch.sources import open_source
from resclip.io.limits import Limits

DATA = bytes(range(256)) * 8
SMALL = Limits(max_bytes=10_000, timeout=10)
QUICK = Limits(max_bytes=10_000, timeout=0.15)
"""For servers that are too slow."""
SECRETS = ("user", "password", "signature", "word=1")


class Hostile(http.server.BaseHTTPRequestHandler):
    """What the first part of the path says: "403" is a status, other words are in `behave`."""

    protocol_version = "HTTP/1.1"
    asked: list[str]
    stop: threading.Event

    def do_GET(self) -> None:
        what = self.path.split("?")[0].strip("/").split(".")[0]
        self.asked.append(what)
        try:
            if what.isdigit():
                self.send(int(what), b"boom", Retry_After="0")
            elif what.startswith("once"):
                self.send(503 if self.asked.count(what) < 2 else 200, DATA)
            else:
                self.behave(what)
        except OSError:
            pass

    do_HEAD = do_GET  # noqa: N815 - http.server asks for it by this name.

    def behave(self, what: str) -> None:
        if what == "good":
            self.send(200, DATA)
        elif what == "loop":
            self.send(302, b"", Location="/loop?signature=2")
        elif what == "to-file":
            self.send(302, b"", Location="file:///etc/passwd")
        elif what == "short":
            self.send(200, DATA[:100], Content_Length=str(len(DATA)))
            self.close_connection = True
        elif what == "negative":
            self.send(200, DATA, Content_Length="-5")
        elif what == "garbage":
            self.wfile.write(b"\0\xff not http\r\n\r\n")
            self.close_connection = True
        elif what == "chunks":
            self.send(200, b"", Transfer_Encoding="chunked")
            time.sleep(0.02)  # So that it does not come together with the header.
            self.wfile.write(b"zz\r\nabc")
            self.close_connection = True
        elif what == "gzip":
            self.send(200, b"none", Content_Encoding="gzip")
        elif what == "bomb":
            self.send(200, gzip.compress(bytes(1 << 20)), Content_Encoding="gzip")
        elif what == "reset":
            # Closed with a reset, in place of an end.
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.close_connection = True
        elif what == "huge":
            self.send(200, b"", Content_Length=str(1 << 40))
        elif what == "endless":
            self.send(200, b"", Transfer_Encoding="chunked")
            while not self.stop.is_set():
                self.wfile.write(b"1000\r\n" + bytes(4096) + b"\r\n")
        elif what == "stall":
            self.send(200, DATA[:100], Content_Length=str(len(DATA)))
            self.wfile.flush()
            self.stop.wait()
        elif what == "drip":
            self.send(200, b"", Content_Length=str(len(DATA)))
            while not self.stop.wait(0.05):
                self.wfile.write(b"x")
        elif what == "header":
            self.wfile.write(b"HTTP/1.1 200 OK\r\n")
            for number in itertools.count():
                self.wfile.write(b"X-%d: 1\r\n" % number)
                if self.stop.wait(0.05):
                    return
        elif what == "silent":
            self.stop.wait()
        elif what == "byte":
            # One byte a time, whatever is asked for.
            first = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0]
            self.send(206, b"x", Content_Range=f"bytes {first}-{first}/100000")
        elif what == "digits":
            self.send(206, DATA, Content_Range=f"bytes 0-9/{'9' * 5000}")
        elif what.startswith("folders"):
            self.send(200, b"<a href='a/'>a</a><a href='b/'>b</a>", Content_Type="text/html")

    def send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status, "the word=1 of the server")
        if not {"Content_Length", "Transfer_Encoding"} & set(headers):
            headers["Content_Length"] = str(len(body))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str]]]:
    """The address of a server, with a user and a password, and what it was asked for."""
    monkeypatch.setattr(web, "PAUSES", (0.0, 0.01))
    handler = type("Handler", (Hostile,), {"asked": [], "stop": threading.Event()})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        # What becomes of a hostile answer is of no interest.
        serving.handle_error = lambda *_: None  # type: ignore[method-assign]
        thread = threading.Thread(target=serving.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://user:password@127.0.0.1:{serving.server_port}", handler.asked
        handler.stop.set()
        serving.shutdown()
        thread.join()


def limits_for(what: str) -> Limits:
    return QUICK if what in ("stall", "silent", "header", "drip", "chunks") else SMALL


FAILURES = [
    ("400", "answers 400 Bad Request", 1),
    ("401", "answers 401 Unauthorized; it wants credentials", 1),
    ("403", "answers 403 Forbidden", 1),
    ("404", "answers 404 Not Found; check the URL", 1),
    ("410", "answers 410 Gone", 1),
    ("429", "answers 429 Too Many Requests", 3),
    ("500", "answers 500 Internal Server Error", 3),
    ("503", "answers 503 Service Unavailable", 3),
    ("599", "answers 599", 1),
    ("loop", "redirects in a circle", 10),
    ("to-file", "redirects to one that is", 1),
    ("short", "ends early or is garbled", 3),
    ("negative", "no valid HTTP", 1),
    ("garbage", "no valid HTTP", 1),
    ("chunks", "no valid HTTP|was silent", 1),
    ("gzip", "ends early or is garbled", 3),
    ("bomb", "at most 10,000 bytes, got more", 1),
    ("reset", "dropped the connection", 0),
    ("huge", "at most 10,000 bytes, got 1,099,511,627,776", 1),
    ("endless", "at most 10,000 bytes, got more", 1),
    ("stall", "was silent for 0.15 seconds", 1),
    ("silent", "was silent for 0.15 seconds", 1),
    ("header", "was silent for 0.15 seconds", 1),
    ("drip", "which is too slow", 1),
]


@pytest.mark.parametrize(("what", "words", "times"), FAILURES)
def test_each_failure_in_plain_words(
    what: str, words: str, times: int, server: tuple[str, list[str]]
) -> None:
    """Once, or three times where it may pass; nothing of the URL's secrets or of the server's own words is told."""
    address, asked = server
    began = time.monotonic()
    with pytest.raises(OSError, match=words) as caught:
        read_range(f"{address}/{what}.png?signature=1", limits=limits_for(what))
    assert time.monotonic() - began < 2
    text = f"{caught.value} {caught.value!r}"
    assert not any(secret in text for secret in SECRETS)
    assert caught.value.filename == f"http://{address.rpartition('@')[2]}/{what}.png"
    assert caught.value.__cause__ is None
    if times:
        assert len(asked) == times


def test_what_passes_is_tried_again(server: tuple[str, list[str]]) -> None:
    address, asked = server
    assert read_range(f"{address}/once.png", limits=SMALL) == DATA
    assert asked == ["once", "once"]


@pytest.mark.parametrize("what", ["403", "endless", "silent", "garbage", "loop"])
def test_every_way_in_is_bounded(what: str, server: tuple[str, list[str]]) -> None:
    """Of an endless file the beginning and the headers are like those of any other."""
    address, _ = server
    url = f"{address}/{what}.png?signature=1"
    sources = [
        f"{address}/{what}{end}?signature=1" for end in (".txt", ".tar", ".parquet", "", ".html")
    ]

    limits = limits_for(what)

    def stream(url: str) -> None:
        with open_binary(url, limits) as opened:
            opened.read(20_000)

    cell = Cell("image", 0)
    ways = [lambda: stream(url), lambda: read_range(url, 100, 50, limits)]
    ways += [lambda: Item(0, "a", "a", url, cell=cell).read(limits)]
    ways += [partial(open_source, source, limits=limits) for source in sources]
    if what == "endless":
        assert read_start(url, 512, limits) == bytes(512)
    else:
        ways += [lambda: read_start(url, 512, limits), lambda: about(url, limits)]
    for way in ways:
        began = time.monotonic()
        with pytest.raises((OSError, ValueError)) as caught:
            way()
        assert time.monotonic() - began < 2
        assert not any(secret in str(caught.value) for secret in SECRETS)


def test_parts_that_are_none(server: tuple[str, list[str]]) -> None:
    """A byte an answer is not asked for again and again, and a size that is no number is not known."""
    address, asked = server
    with pytest.raises(OSError, match=r"expected 10,000 bytes from byte 0 on, got 1"):
        open_source(f"{address}/byte.tar", limits=SMALL)
    assert len(asked) == 3
    assert read_range(f"{address}/digits.png", 0, 10, SMALL) == DATA[:10]


def test_folders_without_end(
    server: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, asked = server
    monkeypatch.setattr(web, "MAX_FOLDERS", 5)
    with pytest.raises(OSError, match="at most 5 folders.*got more; name a folder in it"):
        open_source(f"{address}/folders/", limits=SMALL)
    assert len(asked) < 10


def test_whether_an_image_has_changed_is_asked_in_bounded_time(
    server: tuple[str, list[str]],
) -> None:
    """A server that does not say so is one that says no version."""
    address, asked = server
    item = Item(0, "a.png", "a", f"{address}/silent.png")
    began = time.monotonic()
    assert item.looked_at(QUICK).seen == Identity(
        f"{address.replace('user:password@', '')}/silent.png", None, None
    )
    assert time.monotonic() - began < 2
    assert asked == ["silent"]


def test_a_list_of_bad_servers_is_done(server: tuple[str, list[str]], tmp_path: Path) -> None:
    """Each is one failed item, and the good ones are read."""
    address, _ = server
    bad = ["403", "404", "500", "loop", "garbage", "negative"]
    urls = [f"{address}/{what}.png?signature={what}" for what in ("good", *bad)]
    urls.append(f"{address}/good.jpg")
    (tmp_path / "list.txt").write_text("\n".join(urls))
    source = open_source(str(tmp_path / "list.txt"))
    found = errors(source)
    assert len(source.items) == 8
    assert len(found) == len(bad)
    for item in source.items:
        assert not any(secret in f"{item.name} {item.stem}" for secret in SECRETS)
        assert not any(secret in found.get(item.name, "") for secret in SECRETS)


def test_a_whole_file_from_a_server_without_parts(
    server: tuple[str, list[str]], tmp_path: Path
) -> None:
    address, _ = server
    with open_binary(f"{address}/good.bin", SMALL) as opened:
        opened.seek(-3, 2)
        assert opened.read() == DATA[-3:]
    with pytest.raises(OSError, match="sends no parts of files"):
        read_range(f"{address}/good.bin", 5, 10, SMALL)
    assert read_range(f"{address}/good.bin", 0, 10, SMALL) == DATA[:10]
    assert about(f"{address}/good.bin", SMALL)["size"] == len(DATA)


def test_a_limit_on_bytes_for_other_files(tmp_path: Path) -> None:
    """Of what is held whole: local files, parts and members."""
    path = tmp_path / "a.jpg"
    path.write_bytes(bytes(10_001))
    for length in (None, 10_001):
        with pytest.raises(OSError, match="at most 10,000 bytes, got 10,001") as caught:
            read_range(str(path), 0, length, SMALL)
        assert caught.value.filename == str(path)
    assert len(read_range(str(path), 0, 10_000, SMALL)) == 10_000
    assert open_source(archive(tmp_path / "s.tar", {"a.jpg": bytes(20_000)}), limits=SMALL).items

"""Sources on the web, which a server on this machine stands for, and URLs that cannot be opened."""

from __future__ import annotations

import http.server
import io
import re
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from source_support import archive, contents, folder_of, table

from resclip.batch.sources import open_source


class Server(http.server.SimpleHTTPRequestHandler):
    """Lists folders unless told not to, and serves ranges, as stores on the web do; http.server has none."""

    lists = True
    ranges = True

    def list_directory(self, path: Any) -> Any:
        if self.lists:
            return super().list_directory(path)
        self.send_error(403)
        return None

    def send_head(self) -> Any:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        path = Path(self.translate_path(self.path))
        if not self.ranges or not wanted or not path.is_file():
            return super().send_head()
        data = path.read_bytes()
        part = data[int(wanted[1]) : int(wanted[2]) + 1 if wanted[2] else None]
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {wanted[1]}-{wanted[2]}/{len(data)}")
        self.end_headers()
        return io.BytesIO(part)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[str, Path, type[Server]]]:
    """The address of a server, the folder that it serves, and its settings."""
    root = tmp_path / "web"
    root.mkdir()
    handler = type("Handler", (Server,), {})

    def serve(*arguments: Any) -> Server:
        return handler(*arguments, directory=str(root))

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", root, handler
        server.shutdown()
        thread.join()


def test_the_web(web: tuple[str, Path, type[Server]]) -> None:
    address, root, server = web
    folder_of(root, "pics/a b.jpg", "pics/sub/c.png", "lone.jpg")
    archive(root / "s.tar", {"k.jpg": b"K" * 3000, "l.jpg": b"L"})
    table(root / "t.parquet", {"image": [b"P"]})
    (root / "list.txt").write_text(f"pics/sub/c.png\n/lone.jpg\n{address}/lone.jpg?size=2\n")
    assert contents(open_source(f"{address}/lone.jpg")) == {"lone.jpg": b"lone.jpg"}
    listed = open_source(f"{address}/list.txt")
    assert [item.read() for item in listed.items] == [b"pics/sub/c.png", b"lone.jpg", b"lone.jpg"]
    assert listed.items[0].name == "pics/sub/c.png"
    assert {item.stem.rpartition("/")[2][:4] for item in listed.items[1:]} == {"lone"}
    assert sorted(contents(open_source(f"{address}/pics/")).values()) == [
        b"pics/a b.jpg", b"pics/sub/c.png",
    ]  # fmt: skip
    assert contents(open_source(f"{address}/s.tar")) == {"s/k.jpg": b"K" * 3000, "s/l.jpg": b"L"}
    assert contents(open_source(f"{address}/t.parquet")) == {"t/000000000": b"P"}
    item = open_source(f"{address}/s.tar").items[1]
    server.ranges = False
    with pytest.raises(OSError, match="sends no parts of files"):
        item.read()
    with pytest.raises(FileNotFoundError, match="check the URL"):
        open_source(f"{address}/absent.jpg")
    server.lists = False
    with pytest.raises(FileNotFoundError, match="404 Not Found"):
        open_source(f"{address}/other")
    with pytest.raises(PermissionError, match="403 Forbidden"):
        open_source(f"{address}/pics")
    (root / "page").write_text("<p>Nothing here.</p>")
    with pytest.raises(ValueError, match="name a list file"):
        open_source(f"{address}/page")


def test_no_name_has_what_stands_behind_a_question_mark(
    web: tuple[str, Path, type[Server]],
) -> None:
    """Nor a file's, however the image was named; it may be a signature."""
    address, root, _ = web
    folder_of(root, "a.png")
    (root / "list.txt").write_text(f"a.png?secret=1\n{address}/b.png?secret=2\nc.png#secret\n")
    table(root / "t.parquet", {"path": ["a.png?secret=1", f"{address}/b.png#secret"]})
    for source in ("a.png?secret=1", "a.png#secret", "list.txt?secret=3", "t.parquet?secret=3"):
        for item in open_source(f"{address}/{source}").items:
            assert item.stem in ("a", "b", "c")
            assert "secret" not in item.name


@pytest.mark.parametrize(("url", "package"), [("s3://bucket/a.jpg", "s3fs"), ("box://x", "boxfs")])
def test_a_package_that_is_missing_is_named(
    url: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By this library's table, and by fsspec's own message."""
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{url}.*{package}"):
        open_source(url)


def test_an_unknown_scheme() -> None:
    with pytest.raises(ValueError, match=r"nobody://x/a\.jpg: expected a path or a URL"):
        open_source("nobody://x/a.jpg")


def test_without_pyarrow_a_table_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = table(tmp_path / "t.parquet", {"image": [b"A"]})
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r'pip install "resclip\[batch\]"'):
        open_source(path)


def test_a_server_that_cannot_be_reached(tmp_path: Path) -> None:
    """An error of the one image in a list; of a source itself the reason is told, not only that nothing is there."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # Bound, but not listening.
        address = f"http://127.0.0.1:{bound.getsockname()[1]}"
        (tmp_path / "list.txt").write_text(f"{address}/a.jpg\n")
        with pytest.raises(OSError, match=re.escape(f"{address}/a.jpg")):
            open_source(str(tmp_path / "list.txt")).items[0].read()
        with pytest.raises(ConnectionRefusedError, match="cannot be reached .*check the URL"):
            open_source(f"{address}/list.txt")

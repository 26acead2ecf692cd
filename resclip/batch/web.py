"""Files on web servers: bytes, sizes and lists of files, from servers that may be slow, broken or hostile.

fsspec holds the session, with whatever a user has set up for it. Nothing waits longer or holds more than its limits
say, and every failure becomes an OSError of plain words: neither the URL, which may carry a signature or a password,
nor a text of the server or of a library is passed on.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import os
import re
import socket
import time
from dataclasses import dataclass
from html.parser import HTMLParser
from http import HTTPStatus
from typing import Any
from urllib.parse import urldefrag, urljoin

from fsspec.asyn import sync

from resclip.io.limits import Limits

PAUSES = (0.5, 2.0)
"""Seconds before a request is sent again, to a server that is busy or has dropped the connection."""

MAX_PAUSE = 30.0
"""A server may ask for a longer pause, of at most so many seconds."""

LEAST_SPEED = 1024
"""Bytes a second: a server that sends less, on average over its answer, is as good as silent."""

MOST_TIMEOUTS = 60
"""An answer takes at most so many times as long as a server may be silent: an hour, by default."""

BLOCK = 1 << 22
"""A stream fetches so many bytes at a time: reading the headers of an archive takes few requests."""

MAX_PAGE = 1 << 26
"""The most bytes of a page that lists files: some hundred thousand of them."""

MAX_DEPTH = 32
"""Folders in folders; deeper ones are a server's circle."""

MAX_FOLDERS = 10_000
MAX_FILES = 1_000_000
"""A server's folder has at most so many folders below it, and files: more are made up while they are asked for."""

# What a server may answer differently a moment later.
_PASSING = {408, 425, 429, 500, 502, 503, 504}

_ERRNOS = {
    401: errno.EACCES, 403: errno.EACCES, 404: errno.ENOENT, 410: errno.ENOENT, 408: errno.ETIMEDOUT,
    429: errno.EBUSY, 503: errno.EBUSY, 504: errno.ETIMEDOUT,
}  # fmt: skip
_REMEDIES = {
    401: "; it wants credentials",
    403: "; check that the file may be read",
    404: "; check the URL",
    410: "; check the URL",
}

_PART = re.compile(r"bytes (?:(\d{1,18})-\d+|\*)/(\d{1,18}|\*)", re.ASCII)


@dataclass(frozen=True)
class Answer:
    """What a server sent."""

    data: bytes
    is_part: bool
    """Whether these are the bytes that were asked for, and not the beginning of the whole file."""
    size: int | None
    """Of the whole file in bytes, if that is known."""
    kind: str
    """The content type: "image/png"; "" if the server says none."""


class _Failure(Exception):
    """A request that failed, inside fsspec's loop."""

    def __init__(
        self, number: int, text: str, *, passing: bool = False, pause: float = 0.0
    ) -> None:
        super().__init__(text)
        self.error = OSError(number, text)
        self.passing = passing
        """Whether it may succeed a moment later."""
        self.pause = pause
        """How many seconds later, if the server says so."""


def fetch(
    files: Any, url: str, limits: Limits, start: int = 0, length: int | None = None
) -> Answer:
    """A whole file, or at most `length` of its bytes from `start` on.

    Args:
        files: fsspec's file system for web addresses.

    Raises:
        OSError: the server refuses, cannot be reached, is too slow, or sends more than the limits allow.
    """
    check_length(length, limits)
    answer = _ask(files, _get, url, start, length, limits)
    assert isinstance(answer, Answer)
    return answer


def check_length(length: int | None, limits: Limits) -> None:
    """Raise OSError for more bytes than may be held; None is a number that is not known yet."""
    if length is not None and length > limits.max_bytes:
        raise OSError(errno.EFBIG, _too_large(f"{length:,}", limits))


def _too_large(came: str, limits: Limits) -> str:
    return (
        f"expected at most {limits.max_bytes:,} bytes, got {came}; "
        "make the file smaller, or allow more by max_bytes="
    )


def _ask(files: Any, request: Any, *arguments: Any) -> Any:
    """What a coroutine returns in fsspec's loop, which is tried again after a failure that may pass."""
    for pause in (*PAUSES, None):
        try:
            return sync(files.loop, request, files, *arguments)
        except _Failure as failure:
            if pause is None or not failure.passing:
                raise failure.error from None
            time.sleep(min(max(pause, failure.pause), MAX_PAUSE))
    return None


async def _get(files: Any, url: str, start: int, length: int | None, limits: Limits) -> Answer:
    wanted = {} if length is None else {"Range": f"bytes={start}-{start + length - 1}"}
    most = limits.max_bytes if length is None else length
    begun = time.monotonic()
    try:
        request = _request(files, "GET", url, wanted)
        with contextlib.closing(await asyncio.wait_for(request, limits.timeout)) as answer:
            _check_status(answer)
            is_part, size = _extent(answer, start)
            kind = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
            data = io.BytesIO()
            if answer.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                return Answer(b"", is_part, size, kind)
            if length is None and size is not None and size > most:
                raise _Failure(errno.EFBIG, _too_large(f"{size:,}", limits))
            # aiohttp's own limit on silence fails where a part of the answer could not be parsed.
            while chunk := await asyncio.wait_for(answer.content.readany(), limits.timeout):
                data.write(chunk[: most + 1 - data.tell()])
                if data.tell() > most and length is None:
                    raise _Failure(errno.EFBIG, _too_large("more", limits))
                if data.tell() > most:
                    data.truncate(most)
                    break
                seconds = time.monotonic() - begun
                is_slow = seconds > limits.timeout and data.tell() < LEAST_SPEED * seconds
                if is_slow or seconds > MOST_TIMEOUTS * limits.timeout:
                    text = f"the server sent {data.tell():,} bytes in {seconds:.0f} seconds, which is too slow"
                    raise _Failure(errno.ETIMEDOUT, text)
            return Answer(data.getvalue(), is_part, size, kind)
    except _Failure:
        raise
    except Exception as error:
        raise _in_words(error, limits) from error


async def _request(files: Any, method: str, url: str, headers: dict[str, str]) -> Any:
    """Send a request, with the options that a user has set up for fsspec; the answer's body is not read yet."""
    import aiohttp

    session = await files.set_session()
    options = {
        **files.kwargs,
        "allow_redirects": True,
        # Not for all of a file, as aiohttp would have it: a large one takes its time.
        "timeout": aiohttp.ClientTimeout(total=None),
        "headers": {**files.kwargs.get("headers", {}), "Accept-Encoding": "identity", **headers},
    }
    return await session.request(method, files.encode_url(url), **options)


def _check_status(answer: Any) -> None:
    """Raise _Failure for an answer that is none of success."""
    status = int(answer.status)
    if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or 200 <= status < 300:
        return
    # Not the server's own words for it, which may be anything.
    known = {code.value: f" {code.phrase}" for code in HTTPStatus}
    text = f"the server answers {status}{known.get(status, '')}{_REMEDIES.get(status, '')}"
    wait = answer.headers.get("Retry-After", "")
    pause = float(wait) if re.fullmatch(r"[0-9]{1,6}", wait) else 0.0
    number = _ERRNOS.get(status, errno.EIO)
    raise _Failure(number, text, passing=status in _PASSING, pause=pause)


def _extent(answer: Any, start: int) -> tuple[bool, int | None]:
    """Whether an answer is the part from `start` on that was asked for, and the size of the whole file."""
    part = _PART.fullmatch(answer.headers.get("Content-Range", ""))
    size = int(part[2]) if part is not None and part[2] != "*" else None
    if answer.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        return True, size
    begins = int(part[1]) if part is not None and part[1] else start
    if answer.status == HTTPStatus.PARTIAL_CONTENT and begins == start:
        return True, size
    if start:
        text = f"expected the part from byte {start} on, but the server sends no parts of files"
        raise _Failure(errno.EIO, text)
    return False, answer.content_length


def _in_words(error: Exception, limits: Limits) -> _Failure:
    """What went wrong, from an error's type alone: its text may hold the URL."""
    import aiohttp

    if isinstance(error, asyncio.TimeoutError):
        text = f"the server was silent for {limits.timeout:g} seconds; allow more by timeout="
        return _Failure(errno.ETIMEDOUT, text)
    if isinstance(error, aiohttp.TooManyRedirects):
        return _Failure(errno.ELOOP, "the server redirects in a circle")
    # aiohttp before 3.10 raises a ValueError for every address that it does not like.
    other_scheme = getattr(aiohttp, "NonHttpUrlClientError", ValueError)
    if isinstance(error, (ValueError, other_scheme)):
        text = "the address is malformed, or the server redirects to one that is; check the URL"
        return _Failure(errno.EINVAL, text)
    if isinstance(error, (aiohttp.ClientSSLError, aiohttp.ServerFingerprintMismatch)):
        return _Failure(errno.EACCES, "the server's certificate cannot be trusted")
    if isinstance(error, aiohttp.ClientConnectorError):
        # Of a name that is not found the number is none of the system's.
        is_name = isinstance(error.os_error, socket.gaierror)
        why = "no such name" if is_name else os.strerror(error.os_error.errno or errno.EIO)
        return _Failure(errno.ECONNREFUSED, f"the server cannot be reached ({why}); check the URL")
    if isinstance(error, aiohttp.ClientPayloadError):
        text = "the server's answer ends early or is garbled"
        return _Failure(errno.EIO, text, passing=True)
    if isinstance(error, (aiohttp.ClientConnectionError, OSError)):
        return _Failure(errno.ECONNRESET, "the server dropped the connection", passing=True)
    return _Failure(errno.EPROTO, "the server's answer is no valid HTTP")


def open_stream(files: Any, url: str, limits: Limits) -> io.BufferedIOBase:
    """A seekable stream; of servers that send no parts of files, the whole file, held in memory.

    Raises:
        OSError: see `fetch`.
    """
    first = fetch(files, url, limits, 0, 1)
    if not first.data and first.is_part:
        return io.BytesIO()
    if not first.is_part or first.size is None:
        return io.BytesIO(fetch(files, url, limits).data)
    return io.BufferedReader(_Parts(files, url, first.size, limits), min(BLOCK, limits.max_bytes))


class _Parts(io.RawIOBase):
    """A file that is fetched in the parts that are read."""

    def __init__(self, files: Any, url: str, size: int, limits: Limits) -> None:
        super().__init__()
        self._files, self._url, self._size, self._limits = files, url, size, limits
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, origin + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._size - self._position, self._limits.max_bytes)
        if wanted <= 0:
            return 0
        data = fetch(self._files, self._url, self._limits, self._position, wanted).data
        if len(data) < wanted:
            # Else a server that sends a byte at a time would be asked for each of them.
            text = f"expected {wanted:,} bytes from byte {self._position} on, got {len(data):,}"
            raise OSError(errno.EIO, f"{text}; the file has changed, or its server is broken")
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def about(files: Any, url: str, limits: Limits) -> dict[str, Any]:
    """What a server says of a file without sending it: `size` in bytes and its headers `ETag` and `Last-Modified`.

    Raises:
        OSError: see `fetch`.
    """
    return dict(_ask(files, _head, url, limits))


async def _head(files: Any, url: str, limits: Limits) -> dict[str, Any]:
    try:
        request = _request(files, "HEAD", url, {})
        with contextlib.closing(await asyncio.wait_for(request, limits.timeout)) as answer:
            _check_status(answer)
            known = {name: answer.headers.get(name) for name in ("ETag", "Last-Modified")}
            return {"size": answer.content_length, **known}
    except _Failure:
        raise
    except Exception as error:
        raise _in_words(error, limits) from error


class _Links(HTMLParser):
    """The addresses that a page links to."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if tag == "a" and name == "href" and value]


def entries(files: Any, folder: str, limits: Limits) -> list[str]:
    """What the page of a folder links to below it, relative: "cat.jpg", "sub/"; none of a page that is no list.

    Raises:
        OSError: see `fetch`.
    """
    # As the addresses on the page are written: without spaces, for one.
    root = str(files.encode_url(f"{folder.rstrip('/')}/"))
    page = Limits(max_bytes=min(MAX_PAGE, limits.max_bytes), timeout=limits.timeout)
    answer = fetch(files, root, page)
    if answer.kind not in ("text/html", "application/xhtml+xml", ""):
        return []
    found = set()
    for link in _Links(answer.data.decode("utf-8", "ignore")).found:
        try:
            address = str(files.encode_url(urldefrag(urljoin(root, link)).url))
        except ValueError:
            continue
        # Addresses with a query sort the list anew.
        if address.startswith(root) and "?" not in address and address != root:
            name, slash, _ = address[len(root) :].partition("/")
            found.add(name + slash)
    return sorted(found)


def files_below(files: Any, folder: str, limits: Limits) -> tuple[list[str], dict[str, str]]:
    """Relative names of the files in a folder that its server lists, and why folders in it could not be.

    Raises:
        OSError: the folder itself cannot be listed.
    """
    root = folder.rstrip("/")
    names: list[str] = []
    problems: dict[str, str] = {}
    waiting = [""]
    asked = 0
    while waiting:
        prefix = waiting.pop()
        asked += 1
        if asked > MAX_FOLDERS or len(names) > MAX_FILES:
            raise OSError(
                errno.EFBIG,
                f"expected a folder of at most {MAX_FOLDERS:,} folders and {MAX_FILES:,} files, got more; "
                "name a folder in it, or a list",
            )
        try:
            found = entries(files, f"{root}/{prefix}", limits)
        except OSError as error:
            if not prefix:
                raise
            problems[prefix] = f"expected a list of files; {error.strerror}"
            continue
        for name in found:
            if not name.endswith("/"):
                names.append(prefix + name)
            elif name.strip("/.") and prefix.count("/") < MAX_DEPTH:
                waiting.append(f"{prefix}{name}")
    return names, problems

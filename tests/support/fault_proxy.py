"""A proxy that breaks connections on command; it stands on loopback between real clients and a real server.

with FaultProxy(valkey_port) as redis, HttpFaultProxy(seaweedfs_port) as s3:
    redis.freeze()                          # every client waits
    redis.passing()                         # and goes on
    s3.answer_errors(503, "SlowDown", n=5)
    s3.counts                               # Counter({"freeze": 2, …}): what really hit something

Faults add up until `passing()` ends them all. One thread runs every connection, in an event loop of its own; the
methods may be called from any other thread, and return when the fault is in force.
"""

from __future__ import annotations

import asyncio
import functools
import socket
import struct
import sys
import threading
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import repeat
from typing import Any, NamedTuple, Self

from deploy.programs import free_ports

#: Of a request: method and path, such as `GET` and `/bucket/key?partNumber=1`.
Only = Callable[[str, str], bool]
_Send = Callable[[bytes], Awaitable[None]]

_HOST = "127.0.0.1"
_PIECE_BYTES = 64 * 1024
#: Shorter bodies are not broken: they travel with their head in one packet.
_BROKEN_FROM_BYTES = 1024
#: A raw reply is whole when nothing has followed for so long; a long pipeline is answered in pieces.
_QUIET_S = 0.05
#: A socket that lingers for 0 s is closed with RST in the place of FIN.
_NO_LINGER = struct.pack("ii", 1, 0)


class _Side(NamedTuple):
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


@dataclass
class _Request:
    method: str = ""
    path: str = ""
    lose_reply: bool = False


@dataclass(eq=False)
class _Link:
    """A client's connection, and the server's that belongs to it once there is one."""

    sides: list[_Side]
    #: Neither side hears of the other again.
    lost: bool
    pending: deque[_Request] = field(default_factory=deque)
    task: asyncio.Task[None] | None = None

    def close(self) -> None:
        for side in self.sides:
            side.writer.close()

    def reset(self) -> None:
        for side in self.sides:
            with suppress(OSError):  # it is closed already
                side.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            side.writer.transport.abort()


def _all(_method: str, _path: str) -> bool:
    return True


def _in_loop(method: Callable[[FaultProxy], Coroutine[Any, Any, None]]) -> Callable[[FaultProxy], None]:
    """Run a method in the proxy's thread, and wait for it."""

    def call(self: FaultProxy) -> None:
        asyncio.run_coroutine_threadsafe(method(self), self._loop).result(timeout=10)

    functools.update_wrapper(call, method)
    return call


class FaultProxy:
    """A proxy for any protocol in which a client asks and a server answers.

    Args:
        target: The server's port; a change is for new connections. With None, or no server, they are reset.
        host: The server's host.
    """

    def __init__(self, target: int | None, host: str = _HOST) -> None:
        self.target, self._host = target, host
        (self.port,) = free_ports(1)
        #: What each fault has hit, by its method's name: connections (cut, refuse, blackhole), directions of a
        #: connection that had to wait (freeze), replies (all others).
        self.counts: Counter[str] = Counter()
        self._links: set[_Link] = set()
        self._armed: dict[str, tuple[Iterator[bool], Only]] = {}
        self._delay_s = 0.0
        self._lose_links = False
        self._thaw = asyncio.Event()
        self._listener: asyncio.Server | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)
        self._thread.start()
        try:
            self.passing()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Close everything."""
        if self._thread is not None:
            self._end()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._thread = None
            self._loop.close()

    @_in_loop
    async def _end(self) -> None:
        await self._close_port()
        tasks = [link.task for link in self._links if link.task and link.task.cancel()]
        for link in self._links:
            link.reset()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # what was reset is closed in the next turn of the loop

    @_in_loop
    async def passing(self) -> None:
        """End every fault: all is forwarded, and what was frozen goes on."""
        self._armed.clear()
        self._delay_s = 0.0
        self._lose_links = False
        if self._listener is None:
            self._listener = await asyncio.start_server(self._accept, _HOST, self.port, backlog=512)
        self._thaw.set()

    @_in_loop
    async def cut(self) -> None:
        """Reset every open connection, once; new ones are accepted."""
        self.counts["cut"] += len(self._links)
        for link in self._links:
            link.reset()

    @_in_loop
    async def refuse(self) -> None:
        """Close every connection and the port, as a server does that ends."""
        await self._close_port()
        self.counts["refuse"] += len(self._links)
        for link in self._links:
            link.close()

    @_in_loop
    async def freeze(self) -> None:
        """Forward nothing and close nothing, as a server that is stopped; connections are still accepted."""
        self._thaw.clear()

    @_in_loop
    async def blackhole(self) -> None:
        """Lose every connection, and new ones until `passing()`: neither side hears of the other before a `cut()`.

        This machine still acknowledges what a client sends, so TCP keepalive does not notice.
        """
        self._lose_links = True
        for link in self._links:
            self.counts["blackhole"] += not link.lost
            link.lost = True

    def lose_replies(self, n: int | None = 1) -> None:
        """Carry out the next requests (None: all), but reset the connection in the place of the reply."""
        self._arm("lose_replies", n)

    def delay(self, seconds: float) -> None:
        """Let each reply wait."""
        self._delay_s = seconds

    def _arm(self, fault: str, n: int | None, only: Only = _all) -> None:
        self._armed[fault] = repeat(True) if n is None else repeat(True, n), only

    def _take(self, fault: str, link: _Link, method: str = "", path: str = "") -> bool:
        """Whether a fault is to hit this request; one fewer is then left."""
        left, only = self._armed.get(fault, (repeat(False), _all))
        return not link.lost and only(method, path) and next(left, False)

    async def _close_port(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            await asyncio.sleep(0.01)  # a connection that was accepted just now becomes one of ours meanwhile

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link([_Side(reader, writer)], lost=self._lose_links)
        if link.lost:
            self.counts["blackhole"] += 1
        self._links.add(link)
        link.task = self._loop.create_task(self._serve(link))

    async def _serve(self, link: _Link) -> None:
        """Forward both ways; what ends one side ends the other, and in the same way."""
        try:
            await self._thawed()
            client, server = link.sides[0], _Side(*await asyncio.open_connection(self._host, self.target or 0))
            link.sides.append(server)
            async with asyncio.TaskGroup() as directions:
                directions.create_task(self._until_end(link, client, self._requests(link, client, server)))
                directions.create_task(self._until_end(link, server, self._replies(link, client, server)))
        except* OSError:
            link.reset()
        except* EOFError:
            pass
        finally:
            link.close()
            await asyncio.gather(*(side.writer.wait_closed() for side in link.sides), return_exceptions=True)
            self._links.discard(link)

    async def _until_end(self, link: _Link, source: _Side, direction: Coroutine[Any, Any, None]) -> None:
        try:
            await direction
        except (EOFError, OSError):
            await self._thawed()
            if not link.lost:
                raise
            source.writer.close()  # and the other side is not told

    async def _requests(self, link: _Link, client: _Side, server: _Side) -> None:
        while data := await client.reader.read(_PIECE_BYTES):
            await self._thawed()
            if not any(request.lose_reply for request in link.pending):  # else this is more of the same request
                link.pending.append(_Request(lose_reply=self._take("lose_replies", link)))
            await self._send(link, server, data)
        raise EOFError

    async def _replies(self, link: _Link, client: _Side, server: _Side) -> None:
        while data := await server.reader.read(_PIECE_BYTES):
            await self._thawed()
            if link.pending:  # the first bytes since the client asked
                await self._wait()
                if any(request.lose_reply for request in link.pending):
                    await self._lose_rest(link, server)
                link.pending.clear()
            await self._send(link, client, data)
        raise EOFError

    async def _lose_rest(self, link: _Link, server: _Side) -> None:
        """Swallow a reply; the request goes on meanwhile, so that it reaches the server whole."""
        with suppress(TimeoutError):
            while await asyncio.wait_for(server.reader.read(_PIECE_BYTES), _QUIET_S):
                pass
        self._break_off("lose_replies", link)

    def _break_off(self, fault: str, link: _Link) -> None:
        if not link.lost:
            self.counts[fault] += 1
            link.reset()
        raise EOFError

    async def _send(self, link: _Link, to: _Side, data: bytes) -> None:
        await self._thawed()
        if not link.lost:
            to.writer.write(data)
            await to.writer.drain()

    async def _thawed(self) -> None:
        if not self._thaw.is_set():
            self.counts["freeze"] += 1
            await self._thaw.wait()

    async def _wait(self) -> None:
        if self._delay_s:
            self.counts["delay"] += 1
            await asyncio.sleep(self._delay_s)


class HttpFaultProxy(FaultProxy):
    """A proxy that understands HTTP/1.1, and S3's errors.

    Bytes are forwarded as they came, so signatures hold: the server sees the proxy's address, as the client signed it.
    """

    _error = (HTTPStatus.SERVICE_UNAVAILABLE, "SlowDown")

    def lose_replies(self, n: int | None = 1, only: Only = _all) -> None:
        """Carry out the next requests (None: all), but reset the connection in the place of the reply."""
        self._arm("lose_replies", n, only)

    def answer_errors(self, status: int, code: str, n: int | None = None, only: Only = _all) -> None:
        """Answer the next requests (None: all) with an S3 error, such as 503 SlowDown; the server does not see them."""
        self._error = HTTPStatus(status), code
        self._arm("answer_errors", n, only)

    def break_bodies(self, n: int | None = 1, only: Only = _all) -> None:
        """Reset the connection in the middle of the next replies (None: all) whose body is longer than 1 KiB."""
        self._arm("break_bodies", n, only)

    async def _requests(self, link: _Link, client: _Side, server: _Side) -> None:
        while True:
            head = await _read_head(client.reader)
            await self._thawed()
            method, path = head.first[:2]
            if self._take("answer_errors", link, method, path):
                await self._answer(link, client, head)
            link.pending.append(_Request(method, path, self._take("lose_replies", link, method, path)))
            send = functools.partial(self._send, link, server)
            await send(head.raw)
            # A client that expects "100 Continue" sends nothing until the other direction has passed that on.
            await _copy_body(client.reader, head, send)

    async def _answer(self, link: _Link, client: _Side, head: _Head) -> None:
        if "expect" not in head.fields:  # who asks first whether to send a body is told at once, as by S3
            await _copy_body(client.reader, head, _discard)
        await self._wait()
        self.counts["answer_errors"] += 1
        await self._send(link, client, _error_reply(*self._error, head.first[0]))
        raise EOFError

    async def _replies(self, link: _Link, client: _Side, server: _Side) -> None:
        while True:
            head = await _read_head(server.reader)
            await self._thawed()
            send = functools.partial(self._send, link, client)
            if head.first[1].startswith("1"):  # "100 Continue": the reply itself comes later
                await send(head.raw)
            else:
                await self._wait()
                await self._reply(link, link.pending.popleft(), head, server, send)

    async def _reply(self, link: _Link, request: _Request, head: _Head, server: _Side, send: _Send) -> None:
        if request.lose_reply:
            send = _discard
        await send(head.raw)
        if request.method != "HEAD" and head.first[1] not in {"204", "304"}:
            length = int(head.fields.get("content-length", 0))
            breakable = length > _BROKEN_FROM_BYTES and not request.lose_reply
            if breakable and self._take("break_bodies", link, request.method, request.path):
                await _copy(server.reader, length // 2, send)
                self._break_off("break_bodies", link)
            await _copy_body(server.reader, head, send, unsaid=sys.maxsize)
        if request.lose_reply:
            self._break_off("lose_replies", link)


class _Head(NamedTuple):
    raw: bytes
    #: Method, path and version of a request; version, status and phrase of a reply.
    first: list[str]
    #: Names and values in small letters.
    fields: dict[str, str]


async def _read_head(reader: asyncio.StreamReader) -> _Head:
    raw = await reader.readuntil(b"\r\n\r\n")
    first, *lines = raw.decode("latin-1").rstrip("\r\n").split("\r\n")
    pairs = (line.lower().partition(":") for line in lines)
    return _Head(raw, first.split(" ", 2), {name: value.strip() for name, _, value in pairs})


async def _copy_body(reader: asyncio.StreamReader, head: _Head, send: _Send, unsaid: int = 0) -> None:
    """Copy a body, framing included, of `unsaid` bytes where no length is given: a reply's ends with the connection."""
    if "chunked" not in head.fields.get("transfer-encoding", ""):  # aws-chunked is within the body: nothing to us
        return await _copy(reader, int(head.fields.get("content-length", unsaid)), send)
    size = -1
    while size:
        line = await reader.readuntil(b"\r\n")
        size = int(line.split(b";")[0], 16)
        await send(line)
        await _copy(reader, size + 2 if size else 0, send)
    while line != b"\r\n":  # trailers, then an empty line
        line = await reader.readuntil(b"\r\n")
        await send(line)


async def _copy(reader: asyncio.StreamReader, length: int, send: _Send) -> None:
    while length:
        data = await reader.read(min(length, _PIECE_BYTES))
        if not data:
            raise EOFError
        length -= len(data)
        await send(data)


async def _discard(_data: bytes) -> None:
    """Send it nowhere."""


def _error_reply(status: HTTPStatus, code: str, method: str) -> bytes:
    error = f"<Error><Code>{code}</Code><Message>injected</Message><RequestId>fault-proxy</RequestId></Error>"
    body = "" if method == "HEAD" else f'<?xml version="1.0" encoding="UTF-8"?>\n{error}'
    fields = f"Content-Type: application/xml\r\nContent-Length: {len(body)}\r\nConnection: close"
    return f"HTTP/1.1 {status.value} {status.phrase}\r\n{fields}\r\n\r\n{body}".encode()

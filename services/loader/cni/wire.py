"""The socket between plugin and loader: framing, passed descriptors, and who is at the other end.

Both directions: a header of three big-endian u32 (magic ``FCN1``, kind, length), then ``length`` bytes of
JSON. A request has kind 0 and carries the pod's network namespace as an SCM_RIGHTS descriptor with its first
byte; a reply has kind 0 (a result, possibly empty) or 1 (an error). One request, one reply, one connection.
"""

from __future__ import annotations

import array
import asyncio
import os
import socket
import struct
from enum import IntEnum

from services.loader.cni.errors import CniCode, CniError

MAGIC = 0x46434E31
HEADER = struct.Struct(">III")
# The configuration may have 1 MiB; the envelope around it holds environment variables.
MAX_REQUEST = 1024 * 1024 + 512 * 1024
_MAX_FDS = 4
_UCRED = struct.Struct("iII")


class Kind(IntEnum):
    """What follows a header."""

    RESULT = 0
    ERROR = 1


class ConnectionLost(Exception):
    """The plugin is gone, or what came is no request at all; there is nobody to answer."""


def peer_uid(connection: socket.socket) -> int:
    """The user at the other end, as the kernel recorded it at connect time."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    uid: int = _UCRED.unpack(raw)[1]
    return uid


async def read_request(connection: socket.socket) -> tuple[bytes, list[int]]:
    """The request's JSON and the descriptors that came with it; the caller closes these.

    Raises ConnectionLost, or CniError 6 for a request that is too large.
    """
    loop = asyncio.get_running_loop()
    await _readable(loop, connection)
    data, fds = _receive_with_fds(connection)
    try:
        while len(data) < HEADER.size:
            data += await _more(loop, connection, HEADER.size - len(data))
        magic, kind, length = HEADER.unpack(data[: HEADER.size])
        if magic != MAGIC or kind != 0:
            raise ConnectionLost("the first bytes are not a request's")
        if length > MAX_REQUEST:
            raise CniError(
                CniCode.DECODE_FAILURE, f"the request has {length} bytes", f"expected at most {MAX_REQUEST}"
            )
        chunks = [data[HEADER.size :]]
        missing = length - len(chunks[0])
        while missing > 0:
            chunks.append(await _more(loop, connection, min(missing, 262144)))
            missing -= len(chunks[-1])
        if missing < 0:
            raise ConnectionLost("more came than the request's length says")
    except BaseException:
        close_all(fds)
        raise
    return b"".join(chunks), fds


def frame(kind: Kind, body: bytes) -> bytes:
    """A reply ready to be sent."""
    return HEADER.pack(MAGIC, kind, len(body)) + body


async def hung_up(connection: socket.socket) -> None:
    """Returns when the plugin has closed its end, which it does not do before it has its reply."""
    loop = asyncio.get_running_loop()
    try:
        while await loop.sock_recv(connection, 4096):
            pass
    except OSError:
        pass


def close_all(fds: list[int]) -> None:
    """Closes descriptors that came with a request."""
    while fds:
        os.close(fds.pop())


async def _readable(loop: asyncio.AbstractEventLoop, connection: socket.socket) -> None:
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(connection.fileno(), _set_ready, ready)
    try:
        await ready
    finally:
        loop.remove_reader(connection.fileno())


def _set_ready(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def _receive_with_fds(connection: socket.socket) -> tuple[bytes, list[int]]:
    # socket.recv_fds ignores its flags in Python 3.11, and without CMSG_CLOEXEC a compiler that the loader
    # starts at the same moment would inherit the pod's namespace and keep it alive.
    space = socket.CMSG_SPACE(_MAX_FDS * array.array("i").itemsize)
    try:
        data, ancillary, _, _ = connection.recvmsg(65536, space, socket.MSG_CMSG_CLOEXEC)
    except OSError as exc:
        raise ConnectionLost(str(exc)) from exc
    fds = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    found = list(fds)
    if not data:
        close_all(found)
        raise ConnectionLost("closed before a request came")
    return data, found


async def _more(loop: asyncio.AbstractEventLoop, connection: socket.socket, size: int) -> bytes:
    try:
        data = await loop.sock_recv(connection, size)
    except OSError as exc:
        raise ConnectionLost(str(exc)) from exc
    if not data:
        raise ConnectionLost("closed in the middle of a request")
    return data

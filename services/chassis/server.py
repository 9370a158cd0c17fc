"""The gRPC server of a process: what every service offers besides its own methods.

Health v1, reflection, channelz, validation of requests from the constraints in the protos, deadlines, rich
errors, tracing, and a drain that ends long watches at once and lets short calls finish.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
from collections.abc import Callable
from typing import Final

import grpc
from grpc_health.v1 import health_pb2_grpc

from services.chassis.errors import StartError
from services.chassis.health import Health
from services.chassis.interceptor import ServerCalls
from services.chassis.settings import CommonSettings
from services.chassis.telemetry import Telemetry

MAX_MESSAGE_BYTES: Final = 16 * 1024 * 1024
UNIX_PATH_BYTES: Final = 107
LEAVE_SECONDS: Final = 0.1

_OPTIONS: Final = (
    # Without this a second server binds the same port and takes every other connection.
    ("grpc.so_reuseport", 0),
    ("grpc.enable_channelz", 1),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
)


class ListenError(StartError):
    """An address cannot be served on; the message names it, what is wrong and what is expected."""


class ServiceServer:
    """One process's server. ``add`` servicers, ``start``, then ``serve_until_stopped``."""

    def __init__(self, settings: CommonSettings, telemetry: Telemetry) -> None:
        self._settings = settings
        self._calls = ServerCalls(telemetry, max_calls=settings.max_calls, max_watches=settings.max_watches)
        self._server = grpc.aio.server(interceptors=[self._calls], options=_OPTIONS)
        self._health = Health()
        self._names: list[str] = []
        self._sockets: list[str] = []
        self._stop = asyncio.Event()
        self._stopped = False
        self.addresses: list[str] = []

    def add(self, add_to_server: Callable[..., None], servicer: object, full_service_name: str) -> None:
        """Registers a servicer under its full name (``fimbria.ipam.v1.AddressService``); before ``start``."""
        add_to_server(servicer, self._server)
        self._names.append(full_service_name)

    async def start(self) -> list[str]:
        """Binds every address of the settings, serves, sets health to SERVING; returns the bound addresses.

        A TCP address comes back as HOST:PORT with the real port, a unix socket as ``unix:/PATH``. Unix
        sockets are connectable by the own user only (0600). Raises ListenError.
        """
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._add_reflection()
        from grpc_channelz.v1 import channelz

        channelz.add_channelz_servicer(self._server)
        self.addresses = [self._bind(address) for address in self._settings.listen]
        await self._server.start()
        for name in ("", *self._names):
            self._health.set(name, True)
        return self.addresses

    def set_serving(self, name: str, serving: bool) -> None:
        """Gives health to a name of one's own, for example ``fimbria.loader.v1.readiness``.

        Every name of a service, and the empty one (the process lives), serves from ``start`` to ``stop``; a
        name that is set here is as it was set last, and NOT_SERVING from ``stop`` on. To be called from the
        event loop's thread, before ``start`` too.
        """
        self._health.set(name, serving)

    def request_stop(self) -> None:
        """Makes ``serve_until_stopped`` drain and return. May be called from a signal handler."""
        self._stop.set()

    def catch_signals(self) -> None:
        """From now on SIGTERM and SIGINT mean ``request_stop``, also while the process is still starting."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.request_stop)

    async def serve_until_stopped(self) -> None:
        """Serves until SIGTERM, SIGINT or ``request_stop``, then drains as ``stop`` does."""
        loop = asyncio.get_running_loop()
        self.catch_signals()
        try:
            await self._stop.wait()
            await self.stop()
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    async def stop(self) -> None:
        """Health NOT_SERVING, no new calls, watches end with UNAVAILABLE (DRAINING), the rest may finish.

        Clients that watch the health get a moment to leave: what they send to a server that has stopped
        taking calls would end as CANCELLED, which nobody tries again.
        """
        if self._stopped:
            return
        self._stopped = True
        self._health.stop()
        if self._health.watched:
            await asyncio.sleep(min(LEAVE_SECONDS, self._settings.drain_seconds))
        self._calls.drain()
        await self._server.stop(self._settings.drain_seconds)
        for path in self._sockets:
            _unlink_socket(path)

    def _add_reflection(self) -> None:
        from services.chassis.reflection import add_reflection

        add_reflection([*self._names, "grpc.health.v1.Health", "grpc.channelz.v1.Channelz"], self._server)

    def _bind(self, address: str) -> str:
        if address.startswith("unix:"):
            return self._bind_unix(address)
        host, colon, port = address.rpartition(":")
        if not colon or not host or not port.isdigit() or int(port) > 65535:
            raise ListenError(f"listen address {address!r} is malformed; expected HOST:PORT or unix:/PATH")
        try:
            bound = self._server.add_insecure_port(address)
        except RuntimeError:
            raise ListenError(f"cannot listen on {address}: {_bind_problem(host, int(port))}") from None
        return f"{host}:{bound}"

    def _bind_unix(self, address: str) -> str:
        path = address.removeprefix("unix:").removeprefix("//")
        if not os.path.isabs(path) or len(os.fsencode(path)) > UNIX_PATH_BYTES:
            raise ListenError(
                f"listen address {address!r} is malformed; expected unix:/PATH, absolute, "
                f"up to {UNIX_PATH_BYTES} bytes"
            )
        _clear_stale_socket(path)
        # The socket must never be connectable by others, not even between bind and chmod.
        mask = os.umask(0o177)
        try:
            self._server.add_insecure_port(f"unix:{path}")
        except RuntimeError:
            problem = "expected a directory that exists and that this process may write"
            raise ListenError(f"cannot listen on {address}: {problem}") from None
        finally:
            os.umask(mask)
        self._sockets.append(path)
        return f"unix:{path}"


def _clear_stale_socket(path: str) -> None:
    """Removes a socket that nobody serves. gRPC itself would take over a served one without a word."""
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return
    if not stat.S_ISSOCK(mode):
        raise ListenError(f"cannot listen on unix:{path}: a file of another kind is there; move it away")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            _unlink_socket(path)
            return
        except OSError as exc:
            raise ListenError(f"cannot listen on unix:{path}: {exc.strerror or exc}") from exc
    raise ListenError(
        f"cannot listen on unix:{path}: another process serves there; stop it or change --listen"
    )


def _unlink_socket(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


def _bind_problem(host: str, port: int) -> str:
    """gRPC says only that it failed: binding once more by hand gives the system's reason."""
    try:
        family, kind, _, _, where = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
            probe.listen()
    except OSError as exc:
        return f"{(exc.strerror or str(exc)).lower()}; choose another address with --listen"
    return "the address could not be bound; choose another with --listen"

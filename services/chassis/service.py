"""``main()`` of every service: settings, logs, telemetry, server, signals, ready file, errors, exit codes.

A service's ``__main__`` is its settings class and a function that wires its domain code up:

    @asynccontextmanager
    async def build(context: ServiceContext[IpamSettings]) -> AsyncIterator[None]:
        db = await context.stack.enter_async_context(await Database.open(context.settings.database_url, …))
        context.server.add(add_AddressServiceServicer_to_server, AddressApi(…),
        "fimbria.ipam.v1.AddressService") context.background(collect_garbage(db), "garbage")
        yield

    if __name__ == "__main__":
        run_service(IpamSettings, build)
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Final, Generic, NoReturn, TypeVar

from services.chassis.errors import FimbriaError, StartError
from services.chassis.logs import configure_logging, get_logger
from services.chassis.server import ServiceServer
from services.chassis.settings import CommonSettings, HelpRequested, SettingsError, load_settings
from services.chassis.telemetry import Telemetry, init_telemetry

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2

S = TypeVar("S", bound=CommonSettings)


@dataclass
class ServiceContext(Generic[S]):
    """What ``build`` gets: what the process runs on, and where to register what it adds."""

    service: str
    settings: S
    telemetry: Telemetry
    server: ServiceServer
    stack: AsyncExitStack
    log: Any
    tasks: list[asyncio.Task[Any]] = field(default_factory=list)

    def background(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Runs ``work`` beside the server until the process stops, when it is cancelled.

        If it raises, the process stops with an error: half a service is worse than one that is restarted.
        """
        task = asyncio.create_task(work, name=name)
        self.tasks.append(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self.log.error("background task failed", task=task.get_name(), exc_info=task.exception())
            self.server.request_stop()

    def failure(self) -> BaseException | None:
        """The exception of the first background task that failed."""
        for task in self.tasks:
            if task.done() and not task.cancelled() and task.exception() is not None:
                return task.exception()
        return None


Build = Callable[[ServiceContext[S]], AbstractAsyncContextManager[Any] | Awaitable[Any]]


def run_service(settings: S | type[S], build: Build[S], *, service: str | None = None) -> int:
    """Runs a service until SIGTERM or SIGINT; returns 0.

    ``settings`` is the settings class, which is then loaded from flags and environment, or an instance of it.
    ``build`` is an async context manager, entered before serving and left after the drain, or a coroutine
    function. ``service`` defaults to the name of the package that runs. What cannot work (a bad setting, a
    busy port, a store that cannot be opened) is one line on standard error and SystemExit: 2 for settings,
    else 1.
    """
    name = service or _service_name()
    try:
        loaded = load_settings(settings) if isinstance(settings, type) else settings
    except HelpRequested as exc:
        print(exc)
        raise SystemExit(0) from None
    except SettingsError as exc:
        _die(name, str(exc), EXIT_USAGE)
    try:
        configure_logging(name, loaded)
        asyncio.run(_run(name, loaded, build))
    except KeyboardInterrupt:
        return 0
    except (StartError, FimbriaError) as exc:
        _die(name, str(exc), EXIT_FAILED)
    except OSError as exc:
        _die(name, f"{exc.filename or 'system call'}: {exc.strerror or exc}", EXIT_FAILED)
    return 0


async def _run(name: str, settings: S, build: Build[S]) -> None:
    telemetry = init_telemetry(name, settings)
    log = get_logger(name)
    try:
        async with AsyncExitStack() as stack:
            server = ServiceServer(settings, telemetry)
            # Before the ready file: whoever reads that may stop the process at once.
            server.catch_signals()
            context = ServiceContext(name, settings, telemetry, server, stack, log)
            stack.push_async_callback(_cancel, context)
            built = build(context)
            if isinstance(built, AbstractAsyncContextManager):
                await stack.enter_async_context(built)
            else:
                await built
            stack.push_async_callback(server.stop)
            addresses = await server.start()
            if settings.ready_file:
                write_ready_file(settings.ready_file, addresses)
                stack.callback(_remove_ready_file, settings.ready_file)
            # What start-up made stays: the collector need not look at it again.
            gc.freeze()
            log.info("serving", addresses=addresses, pid=os.getpid())
            await server.serve_until_stopped()
            log.info("stopping")
            failure = context.failure()
            if failure is not None:
                raise StartError(f"a background task failed: {failure}") from failure
    finally:
        # The exporters' shutdown blocks for up to two seconds when the collector is dead; nothing runs any
        # more.
        await asyncio.to_thread(telemetry.shutdown)


async def _cancel(context: ServiceContext[Any]) -> None:
    for task in context.tasks:
        task.cancel()
    await asyncio.gather(*context.tasks, return_exceptions=True)


def write_ready_file(path: str, addresses: list[str]) -> None:
    """Writes ``{"pid", "addresses"}`` with mode 0600; a reader sees all of it or nothing."""
    aside = f"{path}.{os.getpid()}"
    handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "w") as file:
        json.dump({"pid": os.getpid(), "addresses": addresses}, file)
    os.replace(aside, path)


def _remove_ready_file(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


def _service_name() -> str:
    """``ipam`` when ``python -m services.ipam`` runs."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    parts = (spec.name if spec else "service").split(".")
    return parts[-2] if len(parts) > 1 and parts[-1] == "__main__" else parts[-1]


def _die(name: str, message: str, code: int) -> NoReturn:
    line = " ".join(message.split())
    print(f"{name}: error: {line}", file=sys.stderr)
    raise SystemExit(code)

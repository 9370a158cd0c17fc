"""Reaching into a pod's network namespace from the loader's process.

Only a thread can be moved between namespaces, and only a socket needs to have been made in one: it belongs
to the namespace of the moment it was made, and serves from any thread afterwards. So one thread of our own
enters the pod's namespace, makes the socket (or writes what /proc/sys alone can set), and goes back. Nothing
is forked, because a process full of gRPC threads must not be.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

from services.chassis.errors import Unavailable
from services.loader.netlink.rtnetlink import RouteSocket

_CLONE_NEWNET = 0x40000000
_WAIT_SECONDS = 10.0

T = TypeVar("T")

_libc = ctypes.CDLL(None, use_errno=True)
_setns = _libc.setns
_setns.argtypes = [ctypes.c_int, ctypes.c_int]
_setns.restype = ctypes.c_int


class _Visit:
    """One thing to do in one namespace, and what came of it."""

    def __init__(self, netns_fd: int, action: Callable[[], Any]) -> None:
        self.netns_fd = netns_fd
        self.action = action
        self.done = threading.Event()
        self.result: Any = None
        self.error: BaseException | None = None


class NamespaceThread:
    """Does short things in other network namespaces, one at a time, in a thread of its own.

    A thread that cannot get back to where it came from ends, and the next visit gets a new one: nothing else
    ever runs in the wrong namespace.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._visits: SimpleQueue[_Visit] | None = None

    def open_socket(self, netns_fd: int) -> RouteSocket:
        """A route netlink socket of the namespace behind the descriptor. Raises as :meth:`run`."""
        return self.run(netns_fd, RouteSocket)

    def run(self, netns_fd: int, action: Callable[[], T]) -> T:
        """What ``action`` returns when it is called in the namespace behind the descriptor.

        Raises what it raises, OSError (EINVAL for a descriptor that is no network namespace, EPERM without
        CAP_SYS_ADMIN), Unavailable (NAMESPACE_THREAD_STUCK) if the thread does not answer.
        """
        visit = _Visit(netns_fd, action)
        with self._lock:
            if self._visits is None:
                self._visits = SimpleQueue()
                threading.Thread(target=self._run, args=(self._visits,), name="netns", daemon=True).start()
            self._visits.put(visit)
        if not visit.done.wait(_WAIT_SECONDS):
            raise Unavailable(
                "the thread that enters pods' network namespaces does not answer",
                reason="NAMESPACE_THREAD_STUCK",
            )
        if visit.error is not None:
            raise visit.error
        result: T = visit.result
        return result

    def _run(self, visits: SimpleQueue[_Visit]) -> None:
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            while True:
                visit = visits.get()
                if not self._visit(home, visit):
                    self._discard(visits)
                    return
        finally:
            os.close(home)

    def _visit(self, home: int, visit: _Visit) -> bool:
        """Whether the thread is back home afterwards."""
        try:
            enter(visit.netns_fd)
        except OSError as exc:
            visit.error = exc
            visit.done.set()
            return True
        try:
            visit.result = visit.action()
        except BaseException as exc:
            visit.error = exc
        try:
            enter(home)
        except OSError:
            return False
        finally:
            visit.done.set()
        return True

    def _discard(self, visits: SimpleQueue[_Visit]) -> None:
        with self._lock:
            if self._visits is visits:
                self._visits = None
            while not visits.empty():
                visit = visits.get()
                visit.error = Unavailable(
                    "the thread that enters network namespaces was lost; try again",
                    reason="NAMESPACE_THREAD_LOST",
                )
                visit.done.set()


def enter(netns_fd: int) -> None:
    """Moves the calling thread into a network namespace. Raises OSError."""
    if _setns(netns_fd, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"cannot enter the network namespace: {os.strerror(number)}")

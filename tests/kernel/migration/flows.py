"""Flows with sequence numbers between two pods: what is sent is answered, in order, or is missed."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import ExitStack
from types import TracebackType

from tests.kernel.bpf.cluster import Pod
from tests.patience import patient

_NUMBER = struct.Struct("!Q")
_CONNECTIONS = 4
_PORT = 8080
# Between two questions: others want the processor too.
_PAUSE = 0.001
_ANSWER_SECONDS = patient(10.0)


class Flows:
    """Ping-pong over several TCP connections and one UDP flow, all begun by one pod; ``problems`` says what
    went wrong. A TCP question that is lost is asked again by TCP; a UDP question that is lost is lost.
    """

    def __init__(self, client: Pod, server: Pod) -> None:
        self.problems: list[str] = []
        self.asked = [0] * (_CONNECTIONS + 1)
        self._client, self._server = client, server
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._sockets = ExitStack()

    def __enter__(self) -> Flows:
        listener = self._sockets.enter_context(self._server.socket(socket.SOCK_STREAM))
        listener.bind((self._server.address, _PORT))
        listener.listen()
        datagrams = self._sockets.enter_context(self._server.socket(socket.SOCK_DGRAM))
        datagrams.bind((self._server.address, _PORT))
        for index in range(_CONNECTIONS):
            asking = self._sockets.enter_context(self._client.socket(socket.SOCK_STREAM))
            asking.connect((self._server.address, _PORT))
            answering = self._sockets.enter_context(listener.accept()[0])
            # So that it sees soon that it is over.
            answering.settimeout(0.2)
            self._run(self._answer, answering)
            self._run(self._ask, index, asking)
        asking = self._sockets.enter_context(self._client.socket(socket.SOCK_DGRAM))
        asking.connect((self._server.address, _PORT))
        self._run(self._answer_datagrams, datagrams)
        self._run(self._ask, _CONNECTIONS, asking)
        self.progress()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._sockets.close()

    def progress(self) -> None:
        """Waits until every flow has had answers to questions asked from now on. Raises what went wrong."""
        aims = [count + 2 for count in self.asked]
        deadline = threading.Event()
        for _ in range(int(_ANSWER_SECONDS * 100)):
            assert not self.problems, self.problems
            if all(count >= aim for count, aim in zip(self.asked, aims, strict=True)):
                return
            deadline.wait(0.01)
        raise AssertionError(f"no answers: {self.asked}, expected {aims}")

    def _run(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        thread.start()
        self._threads.append(thread)

    def _ask(self, index: int, asking: socket.socket) -> None:
        asking.settimeout(_ANSWER_SECONDS)
        number = 0
        while not self._stop.is_set():
            number += 1
            try:
                asking.sendall(_NUMBER.pack(number))
                answer = asking.recv(_NUMBER.size)
            except OSError as problem:
                self.problems.append(f"flow {index}, question {number}: {problem}")
                return
            if answer != _NUMBER.pack(number):
                self.problems.append(f"flow {index}, question {number}: answered {answer!r}")
                return
            self.asked[index] = number
            self._stop.wait(_PAUSE)

    def _answer(self, answering: socket.socket) -> None:
        while not self._stop.is_set():
            try:
                question = answering.recv(_NUMBER.size)
                if not question:
                    return
                answering.sendall(question)
            except TimeoutError:
                continue
            except OSError as problem:
                if not self._stop.is_set():
                    self.problems.append(f"answering: {problem}")
                return

    def _answer_datagrams(self, answering: socket.socket) -> None:
        answering.settimeout(0.2)
        while not self._stop.is_set():
            try:
                question, sender = answering.recvfrom(_NUMBER.size)
            except TimeoutError:
                continue
            answering.sendto(question, sender)

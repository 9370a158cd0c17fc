"""A node with one device, somebody at its other end who sends, and programs to attach."""

from __future__ import annotations

import errno
import itertools
import os
import socket
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from services.loader.bpf import native
from services.loader.bpf.attach import Hook, Place, TcxMissing
from services.loader.bpf.attach.declarations import TCX_INGRESS
from services.loader.bpf.compiler import compile_sources
from services.loader.bpf.pins import remove_pins
from tests.kernel.attach.programs import SOURCES, Programs
from tests.kernel.attach.stream import NODE_ADDRESS, PEER_ADDRESS, Stream
from tests.kernel.bpf.namespaces import Namespace, Namespaces, run

BPFFS = "/sys/fs/bpf"
DEVICE = "nic0"
NO_TCX = "tcx is not in this kernel, nor in any before 6.6"
_numbers = itertools.count()


def kernel_has_tcx() -> bool:
    """Asked in another way than the loader does."""
    loopback, count = 1, native.ffi.new("__u32 *")
    result = native.lib.bpf_prog_query(loopback, TCX_INGRESS, 0, native.ffi.NULL, native.ffi.NULL, count)
    return bool(result != -errno.EINVAL)


@pytest.fixture
def tcx() -> None:
    """Skips on a kernel without."""
    if not kernel_has_tcx():
        pytest.skip(NO_TCX)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    """What asks for tcx by name cannot be tried where there is none."""
    try:
        return (yield)
    except TcxMissing:
        if kernel_has_tcx():
            raise
        pytest.skip(NO_TCX)


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> str:
    (made,) = compile_sources(str(SOURCES), ["attach.c"], str(tmp_path_factory.mktemp("objects")))
    return made.path


@pytest.fixture
def load(compiled: str) -> Iterator[Callable[..., Programs]]:
    """Loads the programs; those that are not told of a former load share nothing with it."""
    loaded = []

    def make(former: Programs | None = None) -> Programs:
        loaded.append(Programs(compiled, former.counters if former else None))
        return loaded[-1]

    yield make
    for programs in loaded:
        programs.close()


@pytest.fixture(autouse=True, scope="session")
def without_remnants() -> None:
    """Removes the pins of test processes that were killed."""
    for path in Path(BPFFS, "fimbria").glob("attach-*-*"):
        pid = path.name.split("-")[1]
        if pid.isdigit() and not Path("/proc", pid).exists():
            remove_pins(str(path))


@dataclass(frozen=True)
class Wire:
    """The node's device, and who is at its other end. The test's thread is in the node's namespace."""

    node: Namespace
    peer: Namespace
    pins: str

    @property
    def ifindex(self) -> int:
        return socket.if_nametoindex(DEVICE)

    def place(self, programs: Programs, hook: Hook = Hook.INGRESS, *, exclusive: bool = False) -> Place:
        """Where a node's program goes. Its link is pinned by the device's name, as a node's are."""
        name = "from_test" if hook is Hook.INGRESS else "to_test"
        pin = f"{self.pins}/links/{DEVICE}/{name}"
        return Place(self.ifindex, hook, programs[name], pin, exclusive)

    def stream(self) -> Stream:
        return Stream(self.node, self.peer)

    def make_device(self) -> None:
        """Makes the pair of devices; in place of one that was deleted, too."""
        run("ip", "link", "add", DEVICE, "type", "veth", "peer", "name", "eth0", "netns", self.peer.name)
        run("ip", "address", "add", f"{NODE_ADDRESS}/24", "dev", DEVICE)
        run("ip", "link", "set", DEVICE, "up")
        self.peer.command("ip", "address", "add", f"{PEER_ADDRESS}/24", "dev", "eth0")
        self.peer.command("ip", "link", "set", "eth0", "up")


@pytest.fixture
def wire() -> Iterator[Wire]:
    with Namespaces() as namespaces:
        number = next(_numbers)
        pins = f"{BPFFS}/fimbria/attach-{os.getpid()}-{number}"
        made = Wire(namespaces.make(f"node{number}"), namespaces.make(f"peer{number}"), pins)
        try:
            with made.node.entered():
                made.make_device()
                yield made
        finally:
            remove_pins(pins)

"""Masquerading by itself: nat_test.c loaded over bpf/lib/nat.h, with maps of the test's own."""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.loader.bpf.compiler import compile_sources
from services.loader.bpf.pins import remove_pins
from tests.kernel.bpf.namespaces import Namespace, Namespaces
from tests.kernel.nat.frames import V4, V6, Family
from tests.kernel.nat.translator import Translator

SOURCES = Path(__file__).resolve().parents[3] / "bpf"
PROGRAM = "../tests/kernel/nat/nat_test.c"
PINS = Path("/sys/fs/bpf/fimbria")

_numbers = itertools.count()


@pytest.fixture(autouse=True, scope="session")
def without_remnants() -> None:
    """Removes the pins of test processes that were killed."""
    for path in PINS.glob("nattest-*-*"):
        if not Path("/proc", path.name.split("-")[1]).exists():
            remove_pins(str(path))


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The compiled object's path."""
    (compiled,) = compile_sources(str(SOURCES), [PROGRAM], str(tmp_path_factory.mktemp("objects")))
    return compiled.path


@pytest.fixture(params=[V4, V6], ids=["ipv4", "ipv6"])
def family(request: pytest.FixtureRequest) -> Family:
    made: Family = request.param
    return made


@pytest.fixture
def namespaces() -> Iterator[Namespaces]:
    with Namespaces() as made:
        yield made


@pytest.fixture
def namespace(namespaces: Namespaces) -> Iterator[Namespace]:
    """A node's namespace with its addresses, entered for the whole test."""
    made = namespaces.make("nat")
    made.command("sysctl", "-q", "-w", "net.ipv6.conf.all.disable_ipv6=0", "net.ipv6.conf.lo.disable_ipv6=0")
    made.command("ip", "address", "add", f"{V4.node}/32", "dev", "lo")
    made.command("ip", "address", "add", f"{V6.node}/128", "dev", "lo", "nodad")
    with made.entered():
        yield made


@pytest.fixture
def pin_dir() -> Iterator[str]:
    path = PINS / f"nattest-{os.getpid()}-{next(_numbers)}"
    (path / "maps").mkdir(parents=True)
    yield str(path)
    remove_pins(str(path))


Opener = Callable[..., Translator]


@pytest.fixture
def open_translator(program: str, pin_dir: str) -> Iterator[Opener]:
    """Loads the programs: ``ports`` are the first and the last to give out; again over the same maps."""
    opened: list[Translator] = []

    def load(
        ports: tuple[int, int] = (61000, 65535), node4: str = V4.node, node6: str = V6.node
    ) -> Translator:
        made = Translator(
            program,
            f"{pin_dir}/maps",
            {
                "masquerade": struct.pack("=I", 1),
                "nat_port_min": struct.pack("=I", ports[0]),
                "nat_port_max": struct.pack("=I", ports[1]),
                "node_ipv4": V4.pack(node4),
                "node_ipv6": V6.pack(node6),
            },
        )
        opened.append(made)
        return made

    yield load
    for each in opened:
        each.close()


@pytest.fixture
def nat(namespace: Namespace, open_translator: Opener) -> Translator:
    return open_translator()

"""Maps and programs from the command line, on a lab, under an open connection."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cli.__main__ import run
from cli.commands.policy import apply_manifests
from cli.lab import netns
from cli.lab.lab import Lab
from cli.lab.probing import Ends
from tests.cluster.conftest import CLIENT, STRANGER, WEB
from tests.cluster.policies import CLIENT_TO_WEB

pytestmark = pytest.mark.cluster

NODES = ["node-1", "node-2"]


class Connection:
    """One TCP connection from client to web; both ends are here."""

    def __init__(self, lab: Lab) -> None:
        source, target = Ends(lab).pair(CLIENT, WEB)
        assert source.netns is not None and target.netns is not None
        self.address = target.address
        ends: list[socket.socket] = []
        paths = source.netns, target.netns

        def connect() -> None:
            netns.enter_path(paths[1])
            with socket.create_server(("", 80)) as server:
                netns.enter_path(paths[0])
                ends.append(socket.create_connection((self.address, 80), timeout=5))
                ends.append(server.accept()[0])

        thread = threading.Thread(target=connect)
        thread.start()
        thread.join()
        self.client, self.server = ends
        self.server.settimeout(5)

    @property
    def port(self) -> int:
        return int(self.client.getsockname()[1])

    def talks(self) -> bool:
        for sender, receiver in ((self.client, self.server), (self.server, self.client)):
            sender.sendall(b"still there?")
            if receiver.recv(64) != b"still there?":
                return False
        return True

    def close(self) -> None:
        self.client.close()
        self.server.close()


@pytest.fixture(scope="module")
def guarded(shop: Lab) -> Lab:
    apply_manifests(shop.cluster, CLIENT_TO_WEB)
    return shop


@pytest.fixture
def connection(guarded: Lab) -> Iterator[Connection]:
    made = Connection(guarded)
    yield made
    made.close()


@pytest.fixture
def fimbria(guarded: Lab, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs a command that succeeds, on all nodes, and returns what it prints as JSON."""

    def call(*arguments: str) -> Any:
        code = run(["--dir", str(guarded.paths.directory), *arguments, "-o", "json"])
        told = capsys.readouterr()
        assert code == 0, told.err
        return json.loads(told.out)

    return call


def sizes(fimbria: Callable[..., Any], name: str) -> dict[str, int]:
    return {row["node"]: row["max_entries"] for row in fimbria("map", "list") if row["name"] == name}


def holds(fimbria: Callable[..., Any], connection: Connection) -> set[str]:
    """The nodes whose ct4 has the connection."""
    port = connection.port.to_bytes(2, "big").hex()
    address = socket.inet_aton(connection.address).hex()
    return {
        row["node"]
        for row in fimbria("map", "dump", "ct4")
        if port in row["key_hex"] and address in row["key_hex"]
    }


def test_a_map_is_resized_with_what_it_holds_under_a_connection(
    guarded: Lab, connection: Connection, fimbria: Callable[..., Any]
) -> None:
    before = sizes(fimbria, "ct4")
    assert set(before) == set(NODES) and connection.talks()
    assert holds(fimbria, connection) == set(NODES)
    wanted = 2 * before["node-1"]
    rows = fimbria("map", "resize", "ct4", str(wanted))
    assert [(row["node"], row["before"], row["after"], row["resized"]) for row in rows] == [
        (node, before[node], wanted, True) for node in NODES
    ]
    assert connection.talks()
    assert holds(fimbria, connection) == set(NODES)
    assert sizes(fimbria, "ct4") == dict.fromkeys(NODES, wanted)
    assert not guarded.probe_many([(STRANGER, WEB, 80, "TCP")], timeout=0.3)[0].allowed
    fimbria("map", "resize", "ct4", "default", "--node", "node-1")
    assert sizes(fimbria, "ct4") == {"node-1": before["node-1"], "node-2": wanted}
    assert connection.talks()


def test_what_a_map_holds_is_told_by_its_fields(connection: Connection, fimbria: Callable[..., Any]) -> None:
    assert connection.talks()
    (row,) = fimbria("map", "dump", "ct4", "--limit", "1", "--node", "node-1")
    assert row["node"] == "node-1"
    assert isinstance(row["key"], dict) and isinstance(row["value"], dict)
    pressing = fimbria("map", "pressure")
    shares = [row["pressure"] for row in pressing]
    assert shares == sorted(shares, reverse=True)
    (held,) = [row for row in pressing if row["name"] == "ct4" and row["node"] == "node-2"]
    assert held["entries"] >= 1 and held["pressing"] is False


def test_programs_are_listed_where_they_run(fimbria: Callable[..., Any]) -> None:
    rows = {(row["node"], row["name"]): row for row in fimbria("prog", "list")}
    for node in NODES:
        assert {place["hook"] for place in rows[node, "from_container"]["attachments"]} == {"ingress"}
        assert all(place["device"].startswith("lxc") for place in rows[node, "to_container"]["attachments"])
        (place,) = rows[node, "from_host"]["attachments"]
        assert (place["device"], place["hook"]) == ("fimbria_host", "egress")
        assert rows[node, "from_host"]["instructions"] > 100


@pytest.mark.parametrize("arguments", [(), ("--rebuild",)])
def test_a_reload_moves_every_device_under_a_connection(
    guarded: Lab, connection: Connection, fimbria: Callable[..., Any], arguments: tuple[str, ...]
) -> None:
    rows = fimbria("reload", *arguments)
    assert [row["node"] for row in rows] == NODES
    assert sum(row["endpoints"] for row in rows) == 3
    assert connection.talks()
    assert not guarded.probe_many([(STRANGER, WEB, 80, "TCP")], timeout=0.3)[0].allowed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["map", "dump", "ct5"], "MAP_NOT_FOUND"),
        (["map", "dump", "events"], "MAP_HAS_NO_ENTRIES"),
        (["map", "resize", "ct5", "1000"], "MAP_NOT_FOUND"),
        (["map", "resize", "endpoint_dev", "1"], "MAP_TOO_SMALL"),
    ],
)
def test_what_cannot_be_done_says_why_and_changes_nothing(
    guarded: Lab,
    fimbria: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    before = fimbria("map", "list")
    assert run(["--dir", str(guarded.paths.directory), *arguments, "--node", "node-2"]) != 0
    told = capsys.readouterr().err
    assert told.startswith("error: node-2: ") and said in told
    shown = ("node", "name", "id", "max_entries")
    assert [[row[key] for key in shown] for row in fimbria("map", "list")] == [
        [row[key] for key in shown] for row in before
    ]

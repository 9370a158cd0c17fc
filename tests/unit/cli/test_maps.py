"""Maps and programs as `fimbria map`, `fimbria prog` and `fimbria reload` show them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from fimbria.loader.v1 import loader_pb2 as pb
from fimbria.loader.v1 import loader_pb2_grpc

from cli.__main__ import run
from cli.commands.map import decoded, entries_of, size_text
from cli.commands.prog import places_text
from cli.errors import BadInput
from services.chassis.errors import FailedPrecondition, FimbriaError, NotFound, rich_status

Run = Callable[..., tuple[int, str, str]]


class Node(loader_pb2_grpc.DatapathServiceServicer):
    """A node's loader, as far as maps and programs go."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = {"ct4": 100, "policy": 1000}
        self.refusal: FimbriaError | None = None
        self.reloads: list[int] = []

    def _map(self, name: str) -> pb.MapStatus:
        entries = {"ct4": 90, "policy": 10}[name]
        size = self.sizes[name]
        return pb.MapStatus(
            name=name, type="lru_hash", id=7, key_size=16, value_size=40, max_entries=size, entries=entries,
            pressure=entries / size, memory_bytes=2 << 20, resized=size not in (100, 1000),
        )  # fmt: skip

    def GetStatus(self, request: pb.GetStatusRequest, context: grpc.ServicerContext) -> pb.DatapathStatus:
        events = pb.MapStatus(name="events", type="ringbuf", max_entries=4096)
        program = pb.ProgramStatus(name="from_container", id=12, tag="ab12", instructions=100)
        program.attachments.add(device="lxc1", hook="ingress", kind="clsact")
        return pb.DatapathStatus(
            maps=[events, *(self._map(name) for name in sorted(self.sizes, reverse=True))],
            programs=[program],
        )

    def ListMapEntries(
        self, request: pb.ListMapEntriesRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.MapEntry]:
        self._refuse(context)
        yield pb.MapEntry(
            key=b"\x01", value=b"\x02\x03", key_json='{"port": 80}', value_json='{"a": {"b": 1}}'
        )
        if request.limit != 1:
            yield pb.MapEntry(key=b"\x04", value=b"\x05")

    def ResizeMap(self, request: pb.ResizeMapRequest, context: grpc.ServicerContext) -> pb.MapStatus:
        self._refuse(context)
        self.sizes[request.map] = request.max_entries or 100
        return self._map(request.map)

    def Reload(self, request: pb.ReloadRequest, context: grpc.ServicerContext) -> pb.ReloadResponse:
        self._refuse(context)
        self.reloads.append(request.level)
        told = pb.ReloadResponse(programs=[pb.ProgramStatus()] * 8, endpoints=3, migrated_maps=["ct4"])
        told.duration.FromMilliseconds(120)
        return told

    def _refuse(self, context: grpc.ServicerContext) -> None:
        if self.refusal is not None:
            status = rich_status(self.refusal)
            context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
            context.abort(self.refusal.code, status.message)


@pytest.fixture
def node() -> Node:
    return Node()  # type: ignore[abstract]  # what these commands do not call


@pytest.fixture
def fimbria(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Run]:
    """The command line, talking to one node that answers and to one that does not."""
    server = grpc.server(futures.ThreadPoolExecutor(4))
    loader_pb2_grpc.add_DatapathServiceServicer_to_server(node, server)
    server.add_insecure_port(f"unix:{tmp_path}/node.sock")
    server.start()
    monkeypatch.setenv(
        "FIMBRIA_LOADER_TARGETS", f"node-1=unix:{tmp_path}/node.sock,node-2=unix:{tmp_path}/none.sock"
    )

    def call(*arguments: str, nodes: tuple[str, ...] = ("node-1",)) -> tuple[int, str, str]:
        code = run([*arguments, *(f"--node={name}" for name in nodes)])
        told = capsys.readouterr()
        return code, told.out, told.err

    yield call
    server.stop(None)


def words(text: str) -> list[list[str]]:
    return [re.split(r"  +", line.strip()) for line in text.splitlines()]


def test_maps_are_listed_by_name_with_what_they_take(fimbria: Run) -> None:
    code, out, _ = fimbria("map", "list")
    header, *rows = words(out)
    assert code == 0 and header[:5] == ["NODE", "MAP", "TYPE", "ENTRIES", "SIZE"]
    assert [row[1] for row in rows] == ["ct4", "events", "policy"]
    assert rows[0] == ["node-1", "ct4", "lru_hash", "90", "100", "90.0%", "16", "40", "2.0 MiB", "no"]
    assert rows[1][3:6] == ["-", "4096", "-"]
    listed = json.loads(fimbria("map", "list", "-o", "json")[1])
    assert listed[0]["pressure"] == 0.9 and listed[0]["memory_bytes"] == 2 << 20
    assert listed[1]["entries"] is None and "percent" not in listed[0]


def test_the_fullest_map_comes_first_and_is_marked(fimbria: Run) -> None:
    code, out, err = fimbria("map", "pressure")
    _, *rows = words(out)
    assert code == 0
    assert rows == [["!", "node-1", "ct4", "90", "100", "90.0%"], ["node-1", "policy", "10", "1000", "1.0%"]]
    assert "1 over 80 %" in err and "map resize" in err
    code, out, err = fimbria("map", "pressure", "--over", "95", "-o", "json")
    assert [row["pressing"] for row in json.loads(out)] == [False, False] and err == ""


def test_a_dump_is_decoded_where_there_are_types(fimbria: Run) -> None:
    code, out, _ = fimbria("map", "dump", "ct4")
    assert code == 0
    assert words(out) == [["NODE", "KEY", "VALUE"], ["node-1", "port=80", "a={b=1}"], ["node-1", "04", "05"]]
    rows = json.loads(fimbria("map", "dump", "ct4", "--limit", "1", "-o", "json")[1])
    assert rows == [
        {
            "node": "node-1",
            "key": {"port": 80},
            "value": {"a": {"b": 1}},
            "key_hex": "01",
            "value_hex": "0203",
        }
    ]


def test_resizing_tells_the_size_before_and_after(fimbria: Run, node: Node) -> None:
    code, out, _ = fimbria("map", "resize", "ct4", "200")
    assert code == 0
    assert words(out)[1] == ["node-1", "ct4", "100", "200", "90", "45.0%", "2.0 MiB", "yes"]
    (row,) = json.loads(fimbria("map", "resize", "ct4", "default", "-o", "json")[1])
    assert (row["before"], row["after"], row["resized"]) == (200, 100, False)


@pytest.mark.parametrize(
    ("arguments", "refusal", "code"),
    [
        (("map", "dump", "ctx"), NotFound("there is no map ctx", reason="MAP_NOT_FOUND"), 1),
        (
            ("map", "resize", "ct4", "5"),
            FailedPrecondition("it holds 90 entries", reason="MAP_TOO_SMALL", metadata={"entries": "90"}),
            1,
        ),
        (
            ("reload", "--rebuild"),
            FailedPrecondition(
                "bpf_lxc.c does not compile: lib/ct.h:3:1: error: no", reason="DATAPATH_UNAVAILABLE"
            ),
            1,
        ),
    ],
)
def test_a_refusal_names_the_node_and_the_reason(
    fimbria: Run, node: Node, arguments: tuple[str, ...], refusal: FimbriaError, code: int
) -> None:
    node.refusal = refusal
    found, _, err = fimbria(*arguments)
    assert found == code
    assert f"error: node-1: {refusal.message} [{refusal.reason}]" in err


def test_a_node_that_does_not_answer_keeps_no_other_back(fimbria: Run) -> None:
    code, out, err = fimbria("map", "list", nodes=())
    assert code == 3
    assert len(words(out)) == 4 and "error: node-2: cannot reach" in err
    code, _, err = fimbria("map", "list", nodes=("node-9",))
    assert code == 2 and "NODE_NOT_FOUND" in err


def test_programs_are_listed_with_their_places(fimbria: Run) -> None:
    code, out, _ = fimbria("prog", "list")
    assert code == 0
    assert words(out)[1] == [
        "node-1",
        "from_container",
        "12",
        "ab12",
        "100",
        "0",
        "0 B",
        "lxc1/ingress(clsact)",
    ]
    (row,) = json.loads(fimbria("prog", "list", "-o", "json")[1])
    assert row["attachments"] == [{"device": "lxc1", "hook": "ingress", "kind": "clsact"}]


def test_a_reload_tells_what_it_did(fimbria: Run, node: Node) -> None:
    code, out, _ = fimbria("reload")
    assert code == 0
    assert words(out)[1] == ["node-1", "8", "3", "120.0 ms", "0.0 ms", "ct4", "no"]
    (row,) = json.loads(fimbria("reload", "--rebuild", "-o", "json")[1])
    assert row["seconds"] == 0.12 and row["migrated_maps"] == ["ct4"]
    assert node.reloads == [pb.REGENERATION_LEVEL_RELOAD, pb.REGENERATION_LEVEL_REBUILD]


def test_many_places_are_counted() -> None:
    places = [{"device": f"lxc{number}", "hook": "ingress", "kind": "clsact"} for number in range(110)]
    assert places_text(places) == ["110 devices/ingress(clsact)"]
    assert places_text(places[:1]) == ["lxc0/ingress(clsact)"]


@pytest.mark.parametrize("text", ["-1", "0", "1.5", "4294967296", "²", ""])
def test_a_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="expected a number from 1 to 4294967295, or default"):
        entries_of(text)
    assert (entries_of("default"), entries_of("65536")) == (0, 65536)


def test_values_read_on_one_line() -> None:
    assert (
        decoded({"a": 1, "b": {"c": "x"}, "d": [1, {"e": 2}], "f": True}) == "a=1 b={c=x} d=[1,{e=2}] f=true"
    )
    assert [size_text(octets) for octets in (0, 1023, 1536, 5 << 20, 3 << 30)] == [
        "0 B", "1023 B", "1.5 KiB", "5.0 MiB", "3.0 GiB",
    ]  # fmt: skip

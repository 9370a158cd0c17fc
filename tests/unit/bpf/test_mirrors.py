"""What the C and the Python both know is the same: numbers, names and layouts."""

from __future__ import annotations

import json
import re
import struct as packer
import subprocess
from pathlib import Path
from typing import Any

import pytest

from services.loader.bpf import drop_reasons, events, layout, nat
from services.loader.bpf.compiler import compile_sources
from services.loader.bpf.config import NodeConfig
from services.loader.bpf.datapath import SOURCES

STRUCTS = (*layout.STRUCTS, *nat.STRUCTS)
REPOSITORY = Path(__file__).resolve().parents[3]
BPF = REPOSITORY / "bpf"


def defines(path: Path) -> dict[str, tuple[int, str]]:
    """Name to (number, comment) of every numeric #define."""
    pattern = re.compile(r"^#define (\w+) (0x[0-9a-f]+|\d+)(?:\s+/\* (.*?) \*/)?", re.M)
    return {m[1]: (int(m[2], 0), m[3] or "") for m in pattern.finditer(path.read_text())}


def test_drop_reasons_have_the_same_numbers_and_names() -> None:
    found = defines(BPF / "lib/drop_reasons.h")
    names = {
        name.removeprefix("DROP_").removeprefix("REASON_"): number for name, (number, _) in found.items()
    }
    mirrored = {
        name: value for name, value in vars(drop_reasons).items() if name.isupper() and isinstance(value, int)
    }
    assert mirrored == names
    comments = {number: comment or "Forwarded" for number, comment in found.values()}
    assert comments == drop_reasons.REASON_NAMES


def test_reasons_fit_their_byte_and_our_own_are_apart() -> None:
    numbers = [number for number, _ in defines(BPF / "lib/drop_reasons.h").values()]
    assert len(numbers) == len(set(numbers))
    assert max(numbers) < 256


def test_source_files_have_the_same_numbers() -> None:
    text = (BPF / "lib/source_files.h").read_text()
    assert {int(n): name for n, name in re.findall(r'X\((\d+), "(.+?)"\)', text)} == drop_reasons.SOURCE_FILES


def test_every_file_that_reports_has_a_number() -> None:
    known = set(drop_reasons.SOURCE_FILES.values())
    for path in [*BPF.glob("*.c"), *BPF.glob("lib/*.h")]:
        text = re.sub(r"/\*.*?\*/|^#define DROP.*", "", path.read_text(), flags=re.S | re.M)
        if "DROP(" in text or "source_file_id(" in text:
            assert path.name in known | {"drop.h", "source_files.h"}, path.name


def test_unknown_numbers_still_have_a_name() -> None:
    assert drop_reasons.reason_name(250) == "reason 250"
    assert drop_reasons.source_file(99) == "file 99"


@pytest.mark.parametrize(
    ("header", "constants"),
    [
        ("policy.h", {"POLICY_DENY": layout.POLICY_DENY}),
        ("metrics.h", {"METRICS_DIRECTIONS": layout.METRICS_DIRECTIONS}),
        (
            "conntrack.h",
            {name: vars(layout)[name] for name in ("CT_SEEN", "CT_SEEN_FIN", "CT_SEEN_RST", "CT_TICK_SHIFT")},
        ),
        (
            "ipcache.h",
            {"NODE_EVENTS": layout.NODE_EVENTS, "NODE_TRACE": layout.NODE_TRACE},
        ),
        (
            "endpoint.h",
            {name: vars(layout)[name] for name in ("ENDPOINT_SLOTS", "ENDPOINT_INDEX_MAX", "HOST_SLOT")},
        ),
        (
            "common.h",
            {f"DIR_{direction.name}": direction.value for direction in layout.Direction},
        ),
    ],
)
def test_constants_are_the_same(header: str, constants: dict[str, int]) -> None:
    found = defines(BPF / "lib" / header)
    assert {name: found[name][0] for name in constants} == constants


def test_every_word_of_an_event_is_known() -> None:
    found = {name: number for name, (number, _) in defines(BPF / "lib/events.h").items()}
    del found["EVENT_CAPTURE"]
    assert found == {
        f"{prefix}_{word.upper().replace('-', '_')}": number
        for prefix, words in (
            ("EVENT", events._KINDS),
            ("VERDICT", events._VERDICTS),
            ("TRACE", events._POINTS),
            ("FLOW", events._STATES),
        )
        for number, word in words.items()
    }


@pytest.fixture(scope="module")
def btf(tmp_path_factory: pytest.TempPathFactory) -> list[dict[int, dict[str, Any]]]:
    """The type information of every object, one list of types per object."""
    cache = str(tmp_path_factory.mktemp("objects"))
    found = []
    for compiled in compile_sources(str(BPF), SOURCES, cache):
        dump = subprocess.run(
            ["bpftool", "-j", "btf", "dump", "file", compiled.path], capture_output=True, check=True
        )
        found.append({each["id"]: each for each in json.loads(dump.stdout)["types"]})
    return found


def size_of(types: dict[int, dict[str, Any]], number: int) -> int:
    found = types[number]
    if found["kind"] in ("TYPEDEF", "CONST", "VOLATILE"):
        return size_of(types, found["type_id"])
    if found["kind"] == "ARRAY":
        return int(found["nr_elems"]) * size_of(types, found["type_id"])
    return int(found["size"])


@pytest.mark.parametrize("struct", STRUCTS, ids=lambda struct: struct.name)
def test_a_layout_is_the_structs(struct: layout.Struct, btf: list[dict[int, dict[str, Any]]]) -> None:
    seen = 0
    for types in btf:
        for found in types.values():
            if found["kind"] != "STRUCT" or found["name"] != struct.name:
                continue
            seen += 1
            offset, ours = 0, []
            for name, code in struct.members:
                size = packer.calcsize(f"={code}")
                ours.append((name, offset, size))
                offset += size
            theirs = [
                (member["name"], member["bits_offset"] // 8, size_of(types, member["type_id"]))
                for member in found["members"]
            ]
            assert ours == theirs
            assert offset == found["size"] == struct.codec().size
    assert seen, f"no object has struct {struct.name}"


def structs_of_maps(types: dict[int, dict[str, Any]]) -> set[str]:
    """The structs that are a map's key or value, by name."""
    found = set()
    for section in types.values():
        if section["kind"] != "DATASEC" or section["name"] != ".maps":
            continue
        for variable in section["vars"]:
            definition = types[types[variable["type_id"]]["type_id"]]
            for member in definition["members"]:
                if member["name"] in ("key", "value"):
                    pointed = types[types[member["type_id"]]["type_id"]]
                    while pointed["kind"] in ("TYPEDEF", "CONST"):
                        pointed = types[pointed["type_id"]]
                    found |= {pointed["name"]} if pointed["kind"] == "STRUCT" else set()
    return found


def test_every_map_value_and_key_has_a_layout(btf: list[dict[int, dict[str, Any]]]) -> None:
    known = {struct.name for struct in STRUCTS}
    # An address is 16 bytes to the loader. It does not look into what the programs remember of fragments, or
    # keep while they translate one packet.
    internal = {"in6", "frag4_key", "frag6_key", "frag_value", "nat_state"}
    named = {name for types in btf for name in structs_of_maps(types)}
    assert named - known - internal == set()
    assert {"endpoint", "ct6_key", "metric", "nat4_value"} <= named


def test_every_configuration_constant_is_set(btf: list[dict[int, dict[str, Any]]]) -> None:
    config = NodeConfig("n", "192.0.2.1", "198.51.100.1", (), 1, 2, 3)
    declared = {
        found["name"].removeprefix("config_")
        for types in btf
        for found in types.values()
        if found["kind"] == "VAR" and found["name"].startswith("config_")
    }
    assert declared == set(config.constants())


def test_the_licence_is_at_the_head_of_every_file() -> None:
    for path in [*BPF.glob("*.c"), *BPF.glob("lib/*.h")]:
        assert path.read_text().startswith("/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */"), (
            path
        )

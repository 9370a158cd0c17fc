"""`fimbria prog list` and `fimbria reload`: the nodes' programs, and how they are replaced."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from cli.commands import options
from cli.commands.map import size_text
from cli.commands.nodes import Nodes, node_option
from cli.output import output_option, print_rows

if TYPE_CHECKING:
    from fimbria.loader.v1 import loader_pb2

    from cli.client import Cluster

# clang, the verifier and as many devices as a node may have.
_RELOAD_TIMEOUT = 120.0
# With more places than this a table tells how many of each kind there are.
_NAMED_PLACES = 4


@click.group()
def prog() -> None:
    """BPF programs of the nodes."""


@prog.command("list")
@node_option
@output_option()
@options.dir_option
def list_programs(nodes: tuple[str, ...], output: str) -> None:
    """The programs of every node: where they run and what holds them there, what they cost."""
    with options.cluster() as cluster:
        chosen = Nodes(cluster, nodes)
        rows = [
            program_row(node, program)
            for node, told in chosen.each(lambda node: _programs(cluster, node))
            for program in told
        ]
    columns = [
        ("node", "NODE"), ("name", "PROGRAM"), ("id", "ID"), ("tag", "TAG"), ("instructions", "INSNS"),
        ("verified_insns", "VERIFIED"), ("memory", "MEMORY"), ("places", "ATTACHED"),
    ]  # fmt: skip
    _print(rows, columns, output)
    chosen.exit()


@click.command()
@click.option("--rebuild", is_flag=True, help="Compile the programs anew, even if the cache has them.")
@node_option
@output_option()
@options.dir_option
def reload(rebuild: bool, nodes: tuple[str, ...], output: str) -> None:
    """Load the nodes' programs and move every device to them, each in place and under traffic.

    Maps that are laid out otherwise, or have another size, are carried over. Where that fails every device
    keeps the programs that it had.
    """
    with options.cluster() as cluster:
        chosen = Nodes(cluster, nodes)
        rows = [row for _, row in chosen.each(lambda node: _reload(cluster, node, rebuild))]
    columns = [
        ("node", "NODE"), ("programs", "PROGRAMS"), ("endpoints", "ENDPOINTS"), ("took", "TOOK"),
        ("attaching", "ATTACHING"), ("migrated_maps", "MIGRATED"), ("unchanged", "UNCHANGED"),
    ]  # fmt: skip
    if rows or output == "json":
        _print(rows, columns, output)
    chosen.exit()


def program_row(node: str, program: loader_pb2.ProgramStatus) -> dict[str, Any]:
    """A program as a row."""
    attachments = [
        {"device": place.device, "hook": place.hook, "kind": place.kind} for place in program.attachments
    ]
    return {
        "node": node,
        "name": program.name,
        "id": program.id,
        "tag": program.tag,
        "instructions": program.instructions,
        "verified_insns": program.verified_insns,
        "memory_bytes": program.memory_bytes,
        "memory": size_text(program.memory_bytes),
        "load_time": program.load_time.ToJsonString() if program.HasField("load_time") else "",
        "devices": list(program.devices),
        "attachments": attachments,
        "places": places_text(attachments),
    }


def places_text(attachments: list[dict[str, str]]) -> list[str]:
    """Where a program runs: each place, or of many how many of a kind."""
    if len(attachments) <= _NAMED_PLACES:
        return [f"{place['device']}/{place['hook']}({place['kind']})" for place in attachments]
    kinds = Counter((place["hook"], place["kind"]) for place in attachments)
    return [f"{count} devices/{hook}({kind})" for (hook, kind), count in sorted(kinds.items())]


def reload_row(node: str, told: loader_pb2.ReloadResponse) -> dict[str, Any]:
    """What a reload did as a row; times in seconds."""
    seconds, attaching = told.duration.ToNanoseconds() / 1e9, told.attach_duration.ToNanoseconds() / 1e9
    return {
        "node": node,
        "programs": len(told.programs),
        "endpoints": told.endpoints,
        "seconds": seconds,
        "attach_seconds": attaching,
        "took": f"{seconds * 1000:.1f} ms",
        "attaching": f"{attaching * 1000:.1f} ms",
        "migrated_maps": list(told.migrated_maps),
        "unchanged": told.unchanged,
    }


def _print(rows: list[dict[str, Any]], columns: list[tuple[str, str]], output: str) -> None:
    if output == "json":
        shown = ("memory", "places", "took", "attaching")
        rows = [{key: value for key, value in row.items() if key not in shown} for row in rows]
    print_rows(rows, columns, output)


def _programs(cluster: Cluster, node: str) -> list[loader_pb2.ProgramStatus]:
    from fimbria.loader.v1 import loader_pb2

    from cli.client import call

    told = call(cluster.datapath(node).GetStatus, loader_pb2.GetStatusRequest()).programs
    return sorted(told, key=lambda program: program.name)


def _reload(cluster: Cluster, node: str, rebuild: bool) -> dict[str, Any]:
    from fimbria.loader.v1 import loader_pb2

    from cli.client import call

    level = loader_pb2.REGENERATION_LEVEL_REBUILD if rebuild else loader_pb2.REGENERATION_LEVEL_RELOAD
    request = loader_pb2.ReloadRequest(level=level)
    return reload_row(node, call(cluster.datapath(node).Reload, request, timeout=_RELOAD_TIMEOUT))

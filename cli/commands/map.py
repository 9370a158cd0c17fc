"""`fimbria map …`: what the nodes' datapaths hold, how full it is, and how large it may become."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from cli.commands import options
from cli.commands.nodes import Nodes, node_option
from cli.errors import BadInput
from cli.output import output_option, print_json, print_rows, table

if TYPE_CHECKING:
    from fimbria.loader.v1 import loader_pb2

    from cli.client import Cluster

_DUMP_TIMEOUT = 300.0
# All devices are moved to programs that use the new map; what it holds is carried over first.
_RESIZE_TIMEOUT = 120.0
_PRESSING = 0.8


@click.group("map")
def maps() -> None:
    """BPF maps: list, dump, look at their pressure, resize."""


@maps.command("list")
@node_option
@output_option()
@options.dir_option
def list_maps(nodes: tuple[str, ...], output: str) -> None:
    """The maps of every node: type, entries, size, memory."""
    with options.cluster() as cluster:
        chosen = Nodes(cluster, nodes)
        rows = [map_row(node, found) for node, told in _maps(cluster, chosen) for found in told]
    columns = [
        ("node", "NODE"), ("name", "MAP"), ("type", "TYPE"), ("entries", "ENTRIES"), ("max_entries", "SIZE"),
        ("percent", "FULL"), ("key_size", "KEY"), ("value_size", "VALUE"), ("memory", "MEMORY"),
        ("resized", "RESIZED"),
    ]  # fmt: skip
    _print(rows, columns, output)
    chosen.exit()


@maps.command()
@click.option(
    "--over",
    type=click.IntRange(0, 100),
    default=int(_PRESSING * 100),
    show_default=True,
    metavar="PERCENT",
    help="Mark maps that are fuller than this.",
)
@node_option
@output_option()
@options.dir_option
def pressure(nodes: tuple[str, ...], over: int, output: str) -> None:
    """How full the maps are, the fullest first; those that press are marked with `!`."""
    with options.cluster() as cluster:
        chosen = Nodes(cluster, nodes)
        rows = pressure_rows(
            [map_row(node, found) for node, told in _maps(cluster, chosen) for found in told], over / 100
        )
    columns = [
        ("mark", ""), ("node", "NODE"), ("name", "MAP"), ("entries", "ENTRIES"), ("max_entries", "SIZE"),
        ("percent", "FULL"),
    ]  # fmt: skip
    _print(rows, columns, output)
    pressing = sum(row["pressing"] for row in rows)
    if pressing and output == "table":
        click.echo(
            f"{pressing} over {over} %: `fimbria map resize MAP ENTRIES` makes room under traffic", err=True
        )
    chosen.exit()


@maps.command()
@click.argument("name", metavar="MAP")
@click.option("--limit", type=click.IntRange(1), help="At most this many entries of each node.")
@node_option
@output_option()
@options.dir_option
def dump(name: str, limit: int | None, nodes: tuple[str, ...], output: str) -> None:
    """What MAP holds, by the names of its fields where the kernel knows them, else in hexadecimal digits."""
    with options.cluster() as cluster:
        chosen = Nodes(cluster, nodes)
        rows = [
            row
            for _, found in chosen.each(lambda node: _entries(cluster, node, name, limit or 0))
            for row in found
        ]
    if output == "json":
        print_json(rows)
    elif rows or chosen.answered:
        shown = [
            {"node": row["node"], "key": decoded(row["key"]), "value": decoded(row["value"])} for row in rows
        ]
        for line in table(shown, [("node", "NODE"), ("key", "KEY"), ("value", "VALUE")]):
            click.echo(line)
    chosen.exit()


@maps.command()
@click.argument("name", metavar="MAP")
@click.argument("entries", metavar="ENTRIES")
@node_option
@output_option()
@options.dir_option
def resize(name: str, entries: str, nodes: tuple[str, ...], output: str) -> None:
    """Give MAP room for ENTRIES, with what it holds and under traffic; the size outlives the loader.

    ENTRIES is a number, or `default` for the size that the programs declare.
    """
    size = entries_of(entries)
    with options.cluster() as cluster:
        chosen = Nodes(cluster, nodes)
        rows = [row for _, row in chosen.each(lambda node: _resize(cluster, node, name, size))]
    columns = [
        ("node", "NODE"), ("name", "MAP"), ("before", "BEFORE"), ("after", "AFTER"), ("entries", "ENTRIES"),
        ("percent", "FULL"), ("memory", "MEMORY"), ("resized", "RESIZED"),
    ]  # fmt: skip
    if rows or output == "json":
        _print(rows, columns, output)
    chosen.exit()


def entries_of(text: str) -> int:
    """A map's size as the user gives it; 0 stands for the declared one. Raises BadInput."""
    if text == "default":
        return 0
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) < 1 << 32:
        raise BadInput(
            f"ENTRIES {text!r} is not valid: expected a number from 1 to {(1 << 32) - 1}, or default"
        )
    return int(text)


def map_row(node: str, found: loader_pb2.MapStatus) -> dict[str, Any]:
    """A map as a row; `entries` and `pressure` are None where nobody counts."""
    share = found.pressure if found.HasField("pressure") else None
    return {
        "node": node,
        "name": found.name,
        "id": found.id,
        "type": found.type,
        "entries": found.entries if found.HasField("entries") else None,
        "max_entries": found.max_entries,
        "pressure": share,
        "percent": "" if share is None else f"{share:.1%}",
        "key_size": found.key_size,
        "value_size": found.value_size,
        "flags": found.flags,
        "memory_bytes": found.memory_bytes,
        "memory": size_text(found.memory_bytes),
        "resized": found.resized,
    }


def pressure_rows(rows: list[dict[str, Any]], over: float) -> list[dict[str, Any]]:
    """Rows of maps that are counted, the fullest first, with those fuller than `over` marked."""
    counted = [row for row in rows if row["pressure"] is not None]
    for row in counted:
        row["pressing"] = row["pressure"] > over
        row["mark"] = "!" if row["pressing"] else " "
    return sorted(counted, key=lambda row: (-row["pressure"], row["node"], row["name"]))


def size_text(octets: int) -> str:
    """Bytes for people."""
    if octets < 1024:
        return f"{octets} B"
    size = float(octets)
    for unit in ("KiB", "MiB"):
        size /= 1024
        if size < 1024:
            return f"{size:.1f} {unit}"
    return f"{size / 1024:.1f} GiB"


def entry_row(node: str, entry: loader_pb2.MapEntry) -> dict[str, Any]:
    """An element as a row: `key` and `value` by their fields, or None where there is no type information."""
    return {
        "node": node,
        "key": json.loads(entry.key_json) if entry.key_json else entry.key.hex(),
        "value": json.loads(entry.value_json) if entry.value_json else entry.value.hex(),
        "key_hex": entry.key.hex(),
        "value_hex": entry.value.hex(),
    }


def decoded(value: Any) -> str:
    """A decoded key or value on one line: fields as `name=value`, those within others in braces."""
    if isinstance(value, dict):
        return " ".join(
            f"{name}={{{decoded(each)}}}" if isinstance(each, dict) else f"{name}={decoded(each)}"
            for name, each in value.items()
        )
    if isinstance(value, list):
        return "[" + ",".join(f"{{{decoded(e)}}}" if isinstance(e, dict) else decoded(e) for e in value) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _print(rows: list[dict[str, Any]], columns: list[tuple[str, str]], output: str) -> None:
    if output == "json":
        shown = ("percent", "memory", "mark")
        rows = [{key: value for key, value in row.items() if key not in shown} for row in rows]
    print_rows(rows, columns, output)


def _maps(cluster: Cluster, chosen: Nodes) -> list[tuple[str, list[loader_pb2.MapStatus]]]:
    return [
        (node, sorted(told, key=lambda found: found.name))
        for node, told in chosen.each(lambda node: _status(cluster, node))
    ]


def _status(cluster: Cluster, node: str) -> list[loader_pb2.MapStatus]:
    from fimbria.loader.v1 import loader_pb2

    from cli.client import call

    return list(call(cluster.datapath(node).GetStatus, loader_pb2.GetStatusRequest()).maps)


def _entries(cluster: Cluster, node: str, name: str, limit: int) -> list[dict[str, Any]]:
    from fimbria.loader.v1 import loader_pb2

    from cli.client import shown_errors

    request = loader_pb2.ListMapEntriesRequest(map=name, limit=limit)
    with shown_errors():
        return [
            entry_row(node, entry)
            for entry in cluster.datapath(node).ListMapEntries(request, timeout=_DUMP_TIMEOUT)
        ]


def _resize(cluster: Cluster, node: str, name: str, size: int) -> dict[str, Any]:
    from fimbria.loader.v1 import loader_pb2

    from cli.client import call

    before = {found.name: found for found in _status(cluster, node)}
    request = loader_pb2.ResizeMapRequest(map=name, max_entries=size)
    after = map_row(node, call(cluster.datapath(node).ResizeMap, request, timeout=_RESIZE_TIMEOUT))
    held = before.get(name)
    return {
        **after,
        "before": held.max_entries if held is not None else None,
        "after": after["max_entries"],
        "entries_before": held.entries if held is not None and held.HasField("entries") else None,
    }

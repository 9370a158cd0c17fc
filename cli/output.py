"""Printing: tables for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])
Row = Mapping[str, Any]


def output_option(*extra: str) -> Callable[[F], F]:
    """The `-o/--output` option: table, json and the formats named in `extra`."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice(["table", "json", *extra]),
        default="table",
        show_default=True,
        help="How to print the answer.",
    )


def cell(value: Any) -> str:
    """One value as the text of a table's cell; nothing is shown as `-`."""
    if value is None or value == "" or value == [] or value == {}:
        return "-"
    if value is True:
        return "yes"
    if value is False:
        return "no"
    if isinstance(value, Mapping):
        return ",".join(f"{key}={item}" for key, item in sorted(value.items()))
    if isinstance(value, list | tuple):
        return ",".join(cell(item) for item in value)
    return str(value)


def counted(number: int, noun: str, plural: str = "") -> str:
    """`1 leak`, `2 leaks`; `plural` where an s does not make it."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def moment(text: str | None) -> str:
    """An RFC 3339 time to the second, for people; empty for none."""
    return f"{text.partition('.')[0]}Z" if text and "." in text else text or ""


def table(rows: Iterable[Row], columns: Sequence[tuple[str, str]]) -> list[str]:
    """Lines of a table with a header; `columns` are (key, title)."""
    lines = [[title for _, title in columns]]
    lines += [[cell(row.get(key)) for key, _ in columns] for row in rows]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    return [
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


def print_json(value: Any) -> None:
    """Print `value` as indented JSON."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_rows(rows: Sequence[Row], columns: Sequence[tuple[str, str]], output: str) -> None:
    """Print a list: all fields as JSON, or the `columns` as a table."""
    if output == "json":
        print_json(list(rows))
        return
    for line in table(rows, columns):
        click.echo(line)

"""docs/benchmarks.md from figures."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.bench.figures import Figure

_HEAD = """# Benchmarks

`make bench` measures these figures and writes this page. A peer's figure is from the same run, measured in
turn with ours, because machines differ and are noisy: look at the ratio. A missed goal is marked.

Measured on {machine}.
"""


def machine() -> str:
    """The machine in words: cores, architecture, kernel."""
    release = platform.release().split("-")[0]
    return (
        f"{os.cpu_count()} cores, {platform.machine()}, Linux {release}, Python {platform.python_version()}"
    )


@dataclass(frozen=True)
class Table:
    """A section of another shape than figures beside peers have: cells as they are printed."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    introduction: str = ""


def render(sections: Mapping[str, Sequence[Figure] | Table]) -> str:
    """The page. One table a section."""
    parts = [_HEAD.format(machine=machine())]
    for title, section in sections.items():
        parts.append(f"## {title}\n")
        table = section if isinstance(section, Table) else _figures(section)
        if table.introduction:
            parts.append(table.introduction)
        parts += [_line(table.header), "|---" * len(table.header) + "|", *map(_line, table.rows), ""]
        if not isinstance(section, Table):
            notes = [f"- {figure.name}: {figure.note}" for figure in section if figure.note]
            parts += ["\n".join(notes) + "\n"] if notes else []
    return "\n".join(parts).rstrip() + "\n"


def _figures(figures: Sequence[Figure]) -> Table:
    return Table(("figure", "Fimbria", "peer", "ratio", "goal", "met"), [_row(figure) for figure in figures])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _row(figure: Figure) -> tuple[str, ...]:
    peer = f"{_number(figure.peer)} {figure.unit} ({figure.peer_name})" if figure.peer is not None else "–"
    ratio = "–"
    if figure.ratio is not None:
        ratio = f"{figure.ratio:.2f}" if figure.ratio >= 0.01 else f"{figure.ratio:.4f}"
    met = "–" if figure.met is None else "yes" if figure.met else "**no**"
    return figure.name, f"{_number(figure.value)} {figure.unit}", peer, ratio, figure.goal or "–", met


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"

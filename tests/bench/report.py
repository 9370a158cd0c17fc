"""docs/benchmarks.md from figures."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from tests.bench.figures import Figure

_WIDTH = 40
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


Section: TypeAlias = Sequence[Figure] | Table


def render(sections: Mapping[str, Section]) -> str:
    """The page. One table a section."""
    return _page(
        _HEAD.format(machine=machine()),
        {title: _section(title, section) for title, section in sections.items()},
    )


def updated(page: str, sections: Mapping[str, Section]) -> str:
    """The page with these sections as they are now; those that it does not have yet come last."""
    head, *old = re.split(r"^(?=## )", page, flags=re.MULTILINE)
    found = {text.splitlines()[0].removeprefix("## "): text for text in old}
    return _page(head, found | {title: _section(title, section) for title, section in sections.items()})


def _page(head: str, sections: Mapping[str, str]) -> str:
    return "\n\n".join(text.strip() for text in (head, *sections.values())) + "\n"


def _section(title: str, section: Section) -> str:
    parts = [f"## {title}\n"]
    table = section if isinstance(section, Table) else _figures(section)
    if table.introduction:
        parts.append(table.introduction)
    parts += [_line(table.header), "|---" * len(table.header) + "|", *map(_line, table.rows), ""]
    if not isinstance(section, Table):
        parts += [f"- {figure.name}: {figure.note}" for figure in section if figure.note]
    return "\n".join(parts)


def plot(names: Sequence[str], curves: Sequence[tuple[int, Sequence[float]]]) -> str:
    """Bars for a table's introduction: of each name those of all sizes under each other, to one scale for
    names of one unit (what follows the last comma).
    """
    units = [name.rpartition(",")[2] for name in names]
    most = {
        unit: max(values[place] for _, values in curves for place, each in enumerate(units) if each == unit)
        for unit in units
    }
    lines = []
    for place, name in enumerate(names):
        lines.append(name)
        for size, values in curves:
            bar = "#" * max(1, round(values[place] / most[units[place]] * _WIDTH))
            shown = f"{values[place]:.0f}" if most[units[place]] >= 100 else f"{values[place]:.3f}"
            lines.append(f"  {size:>7,}  {bar} {shown}")
    return "\n```text\n" + "\n".join(lines) + "\n```\n"


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

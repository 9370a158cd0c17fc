"""docs/benchmarks.md from figures."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence

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


def render(sections: Mapping[str, Sequence[Figure]]) -> str:
    """The page. One table a section."""
    parts = [_HEAD.format(machine=machine())]
    for title, figures in sections.items():
        parts.append(f"## {title}\n")
        parts.append("| figure | Fimbria | peer | ratio | goal | met |\n|---|---|---|---|---|---|")
        parts.extend(_row(figure) for figure in figures)
        notes = [f"- {figure.name}: {figure.note}" for figure in figures if figure.note]
        parts.append("")
        if notes:
            parts.append("\n".join(notes) + "\n")
    return "\n".join(parts).rstrip() + "\n"


def _row(figure: Figure) -> str:
    peer = f"{_number(figure.peer)} {figure.unit} ({figure.peer_name})" if figure.peer is not None else "–"
    ratio = f"{figure.ratio:.2f}" if figure.ratio is not None else "–"
    met = "–" if figure.met is None else "yes" if figure.met else "**no**"
    return (
        f"| {figure.name} | {_number(figure.value)} {figure.unit} | {peer} | {ratio} "
        f"| {figure.goal or '–'} | {met} |"
    )


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"

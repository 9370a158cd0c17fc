"""The page about addresses: its commands are commands, and no reason of a failure is missing."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from cli.__main__ import cli

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "ipam.md").read_text()
COMMANDS = re.findall(r"^ {4}(fimbria .*)$", PAGE, re.MULTILINE)


def parse(command: click.Command, name: str, arguments: list[str], parent: click.Context | None) -> None:
    """Raises click.ClickException unless the arguments are those of a command; calls none."""
    with command.make_context(name, arguments, parent=parent) as context:
        if isinstance(command, click.Group):
            rest = [*context._protected_args, *context.args]
            found, chosen, left = command.resolve_command(context, rest)
            assert chosen is not None and found is not None
            parse(chosen, found, left, context)


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_page_is_one(line: str) -> None:
    _, *arguments = shlex.split(line, comments=True)
    parse(cli, "fimbria", arguments, None)


def test_every_reason_of_a_failure_is_on_the_page() -> None:
    assert len(COMMANDS) > 20
    sources = "".join(path.read_text() for path in (ROOT / "services" / "ipam").glob("*.py"))
    reasons = set(re.findall(r'reason ?= ?"([A-Z_]+)"', sources))
    assert len(reasons) > 25
    assert {reason for reason in reasons if f"`{reason}`" not in PAGE} == set()

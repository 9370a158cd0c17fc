"""Commands to the loaders of several nodes: one that fails does not keep the others back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cli import errors
from cli.errors import CliError

if TYPE_CHECKING:
    from cli.client import Cluster

F = TypeVar("F", bound=Callable[..., Any])
R = TypeVar("R")


def node_option(function: F) -> F:
    """`--node`: the nodes that are meant, all of them if none is named."""
    return click.option(
        "--node", "nodes", multiple=True, help="Only this node; may be given again. All nodes otherwise."
    )(function)


class Nodes:
    """The nodes that a command is about, and what failed on them."""

    def __init__(self, cluster: Cluster, named: Iterable[str]) -> None:
        """Raises BadInput for a node that is not known."""
        self.names = tuple(dict.fromkeys(named)) or tuple(cluster.targets.loaders)
        for node in self.names:
            cluster.targets.loader(node)
        self._worst: CliError | None = None

    def each(self, action: Callable[[str], R]) -> Iterator[tuple[str, R]]:
        """What `action` returns for each node; where it fails, the user is told which node that was."""
        for node in self.names:
            try:
                result = action(node)
            except CliError as error:
                self._worst = error
                error.message = f"{node}: {error.message}"
                errors.report(error)
                continue
            yield node, result

    @property
    def answered(self) -> bool:
        """Whether all of them did."""
        return self._worst is None

    def exit(self) -> None:
        """Ends the command with the last failure's exit code, if there was one."""
        if self._worst is not None:
            click.get_current_context().exit(self._worst.exit_code)

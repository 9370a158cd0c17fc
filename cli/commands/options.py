"""Options that many commands share, and the cluster that they name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cli.errors import BadInput
from cli.targets import Targets, lab_directory, resolve

if TYPE_CHECKING:
    from cli.client import Cluster
    from cli.lab.lab import Lab

F = TypeVar("F", bound=Callable[..., Any])


def dir_option(function: F) -> F:
    """`--dir`, also after the command's name; the nearer one wins."""

    def remember(context: click.Context, _: click.Parameter, value: str | None) -> None:
        root = context.find_root()
        root.obj = root.obj or {"directory": None}
        if value == "":
            raise BadInput("--dir is empty: expected a directory")
        if value is not None:
            root.obj["directory"] = value

    return click.option(
        "--dir",
        metavar="DIR",
        expose_value=False,
        callback=remember,
        help="Directory of the lab (default /run/fimbria/lab; env FIMBRIA_LAB_DIR).",
    )(function)


def _given() -> str | None:
    context = click.get_current_context().find_root()
    return context.obj["directory"] if context.obj else None


def directory() -> str:
    """The lab's directory that the command line or the environment names."""
    return lab_directory(_given())


def targets() -> Targets:
    """The cluster that the command line or the environment names."""
    return resolve(_given())


def lab() -> Lab:
    """The lab that the command line or the environment names."""
    from cli.lab.lab import Lab

    return Lab(directory())


def cluster() -> Cluster:
    """Clients of the cluster that the command line or the environment names."""
    from cli.client import Cluster

    return Cluster(targets())

"""`fimbria cni`: the plugin and its network configuration for container runtimes."""

from __future__ import annotations

from pathlib import Path

import click

from cli import cni_install

_socket = click.option(
    "--socket", default="/run/fimbria/cni.sock", show_default=True, help="The loader's socket for the plugin."
)
_name = click.option("--name", default="fimbria", show_default=True, help="Name of the network.")
_mtu = click.option("--mtu", default=0, help="MTU of the pods' devices. 0: the node's.")


@click.group()
def cni() -> None:
    """The CNI plugin: its network configuration, and its installation for a container runtime."""


@cni.command("conflist")
@_socket
@_name
@_mtu
def show(socket: str, name: str, mtu: int) -> None:
    """Print the network configuration."""
    click.echo(cni_install.render(cni_install.conflist(socket, name, mtu)), nl=False)


@cni.command()
@click.option(
    "--bin-dir",
    default="/opt/cni/bin",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Where the runtime looks for plugins.",
)
@click.option(
    "--conf-dir",
    default="/etc/cni/net.d",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Where the runtime looks for network configurations.",
)
@_socket
@_name
@_mtu
def install(bin_dir: Path, conf_dir: Path, socket: str, name: str, mtu: int) -> None:
    """Install the plugin and its configuration; again is fine, and replaces both at once."""
    configuration = cni_install.conflist(socket, name, mtu)
    for path in cni_install.install(configuration, bin_dir, conf_dir):
        click.echo(path)
    for path in cni_install.earlier(conf_dir):
        click.echo(f"warning: runtimes that take the first configuration take {path}", err=True)

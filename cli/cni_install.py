"""Puts the CNI plugin and its network configuration where a container runtime looks for them."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from cli.errors import BadInput, CliError
from cli.lab.preflight import CNI_PLUGIN

CONFLIST = "10-fimbria.conflist"
# Runtimes with libcni up to 1.1 read the first member alone, and know no 1.1.0.
VERSION = "1.0.0"
VERSIONS = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")
# What runtimes may say of a container. Addresses cannot be chosen; that they are asked for is refused by the
# loader, where without the capability it would be ignored.
CAPABILITIES = ("bandwidth", "io.kubernetes.cri.pod-annotations", "ips", "mac", "portMappings")
# What runtimes read of a directory, in the order of names.
_SUFFIXES = (".conf", ".conflist", ".json")
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*", re.ASCII)
# The longest path of a unix socket.
_SOCKET_PATH_BYTES = 107


def conflist(socket: str, name: str, mtu: int) -> dict[str, Any]:
    """The network configuration for a node whose loader listens at ``socket``; ``mtu`` 0 is the node's.

    Raises BadInput.
    """
    if not socket.startswith("/") or len(socket.encode()) > _SOCKET_PATH_BYTES:
        raise BadInput(
            f"--socket {socket!r}; expected an absolute path of at most {_SOCKET_PATH_BYTES} bytes"
        )
    if not _NAME.fullmatch(name):
        raise BadInput(f"--name {name!r}; expected alphanumerics, '_', '.' and '-', the first alphanumeric")
    if mtu and not 576 <= mtu <= 65535:
        raise BadInput(f"--mtu {mtu}; expected 576..65535, or 0 for the node's")
    return {
        "cniVersion": VERSION,
        "cniVersions": list(VERSIONS),
        "name": name,
        "plugins": [
            {
                "type": CNI_PLUGIN.name,
                "socket": socket,
                **({"mtu": mtu} if mtu else {}),
                "capabilities": dict.fromkeys(CAPABILITIES, True),
            }
        ],
    }


def render(configuration: dict[str, Any]) -> str:
    """The configuration as a file has it."""
    return json.dumps(configuration, indent=2) + "\n"


def install(configuration: dict[str, Any], bin_dir: Path, conf_dir: Path) -> list[Path]:
    """Installs the plugin (0755), then the configuration (0644), each whole or not at all; the files.

    Raises CliError.
    """
    try:
        plugin = CNI_PLUGIN.read_bytes()
    except FileNotFoundError:
        raise CliError(
            f"the CNI plugin {CNI_PLUGIN} is not built", reason="CNI_PLUGIN_MISSING", hint="run `make build`"
        ) from None
    files = [bin_dir / CNI_PLUGIN.name, conf_dir / CONFLIST]
    for path, content, mode in zip(
        files, (plugin, render(configuration).encode()), (0o755, 0o644), strict=True
    ):
        try:
            _write(path, content, mode)
        except OSError as problem:
            raise CliError(
                f"cannot install {path}: {problem.strerror or problem}", reason="CNI_INSTALL_FAILED"
            ) from None
    return files


def earlier(conf_dir: Path) -> list[Path]:
    """Configurations that a runtime takes instead of ours, because their names come first."""
    found = [path for path in conf_dir.iterdir() if path.suffix in _SUFFIXES and path.name < CONFLIST]
    return sorted(found)


def _write(path: Path, content: bytes, mode: int) -> None:
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    # No runtime reads a name with this suffix, and one that runs keeps the plugin that it has opened.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise

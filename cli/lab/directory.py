"""A lab's directory: made and marked as the lab's own before anything else is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from cli.errors import BadInput, CliError
from cli.lab.files import locked, read_json, write_json
from cli.lab.paths import LabPaths
from cli.lab.sweep import refuse_foreign

VERSION = 1
# sun_path of a unix socket's address holds 108 bytes, the last of which is zero.
LONGEST_SOCKET_PATH = 107


@contextlib.contextmanager
def claimed(paths: LabPaths, longest_node: str) -> Iterator[int]:
    """Make the directory, mark it, and hold its lock for the block; the lock's descriptor.

    Raises BadInput for a directory that is somebody else's or too deep for unix sockets (`longest_node` is
    the node with the longest name), CliError when it cannot be made.
    """
    deepest = len(str(paths.cni_socket(longest_node)).encode())
    if deepest > LONGEST_SOCKET_PATH:
        excess = deepest - LONGEST_SOCKET_PATH
        raise BadInput(
            f"{paths.directory} is {excess} characters too long for unix sockets in it",
            hint="give a shorter directory with --dir",
        )
    refuse_foreign(paths)
    missing = [path for path in paths.directory.parents if not path.exists()]
    made = _make(paths)
    with contextlib.ExitStack() as stack:
        while True:
            try:
                descriptor = stack.enter_context(locked(paths.lock))
                break
            except FileNotFoundError:
                # `lab down` removed the directory under our feet.
                made = _make(paths)
        refuse_foreign(paths)
        _mark(paths, made, missing)
        for folder in paths.folders:
            folder.mkdir(mode=0o700, exist_ok=True)
        yield descriptor


def _make(paths: LabPaths) -> bool:
    """Make the directory; False when it is there already."""
    try:
        paths.directory.parent.mkdir(parents=True, exist_ok=True)
        paths.directory.mkdir(mode=0o700)
        return True
    except FileExistsError:
        if paths.directory.is_dir():
            return False
        raise CliError(f"cannot make {paths.directory}: a file is in the way") from None
    except OSError as error:
        raise CliError(f"cannot make {paths.directory}: {error.strerror}") from None


def _mark(paths: LabPaths, made: bool, missing: list[Path]) -> None:
    """Say that the directory is a lab's, and whether `lab down` is to remove it with its parents."""
    marker = read_json(paths.marker)
    if marker is None or (made and not marker["made_directory"]):
        content = {
            "lab": paths.id,
            "version": VERSION,
            "made_directory": made,
            "made_parents": [str(path) for path in missing],
        }
        write_json(paths.marker, content)

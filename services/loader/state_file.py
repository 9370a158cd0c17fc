"""JSON files in the node's state directory: for root only, and whole or not there."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from services.loader import failpoints

TEMPORARY: Final = ".tmp"


def read_state(path: Path) -> dict[str, Any]:
    """The object in a file. Raises OSError, or ValueError for what is none. What a writer that was killed has
    left beside it goes: there is only one, and whoever reads is it.
    """
    remove_state(path.with_name(path.name + TEMPORARY))
    document = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(document, dict):
        raise ValueError("it holds no JSON object")
    return document


def write_state(path: Path, document: Mapping[str, Any]) -> None:
    """Replaces a file as a whole: killed at any moment, it holds either this or what it held before; what
    has to outlive the machine too is synced with :func:`sync_state`. Raises OSError.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(document, file, separators=(",", ":"))
        failpoints.passed("record.written")
        os.replace(temporary, path)
        failpoints.passed("record.renamed")
    except BaseException:
        remove_state(temporary)
        raise


def remove_state(path: Path) -> None:
    """Removes a file; one that is not there is fine."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


def sync_state(path: Path) -> None:
    """Returns when a file that was written is on disk; one that is gone again is fine. Takes milliseconds;
    from any thread.
    """
    # The directory too: without it the name may be lost with the machine, though the content is safe.
    for each in (path, path.parent):
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(each, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

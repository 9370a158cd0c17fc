"""Small JSON files in the node's state directory: for root only, and whole or not there."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any


def read_state(path: str) -> dict[str, Any]:
    """The object in a file. Raises OSError, or ValueError for what is none."""
    with open(path, encoding="utf-8") as file:
        data = json.load(file)
    if not isinstance(data, dict):
        raise ValueError(f"{path} holds no JSON object")
    return data


def write_state(path: str, content: Mapping[str, Any]) -> None:
    """Writes an object in one step: after a crash the file holds either this or what it held before. Raises
    OSError.
    """
    directory = os.path.dirname(path)
    os.makedirs(directory, mode=0o700, exist_ok=True)
    fresh = f"{path}.new"
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(content, file, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    os.rename(fresh, path)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

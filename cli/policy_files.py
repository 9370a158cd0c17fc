"""Manifests from files, directories and standard input."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from cli.errors import BadInput

LARGEST = 4 * 1024 * 1024
_SUFFIXES = (".yaml", ".yml", ".json")


class ManifestFile(NamedTuple):
    """A file's text, and its name as the user gave it."""

    name: str
    text: str


def read_files(names: Iterable[str]) -> list[ManifestFile]:
    """Each file, or each manifest in a directory by name; `-` is standard input. BadInput says which cannot
    be read, is empty or too large.
    """
    found: dict[str, ManifestFile] = {}
    for name in names:
        for file in _expanded(name):
            if file not in found:
                found[file] = ManifestFile("stdin" if file == "-" else file, _read(file))
    return list(found.values())


def _expanded(name: str) -> Iterator[str]:
    path = Path(name)
    if name == "-" or not path.is_dir():
        yield name
        return
    files = sorted(str(file) for file in path.iterdir() if file.suffix in _SUFFIXES and file.is_file())
    if not files:
        raise BadInput(f"{name} has no manifest: expected files that end with {', '.join(_SUFFIXES)}")
    yield from files


def _read(file: str) -> str:
    try:
        data = sys.stdin.buffer.read(LARGEST + 1) if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise BadInput(f"cannot read {file}: {error.strerror}") from None
    if len(data) > LARGEST:
        raise BadInput(f"{file} is larger than {LARGEST >> 20} MiB")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise BadInput(f"{file} is not UTF-8 text: {error}") from None
    if not text.strip():
        raise BadInput(f"{file} is empty: expected at least one manifest")
    return text

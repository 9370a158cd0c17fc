"""Maps of a source in C beside the tests: layouts that the datapath's own programs do not have."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.loader.bpf.compiler import compile_sources
from services.loader.bpf.maps import Map
from services.loader.bpf.objects import OpenedObject


@contextmanager
def maps_of(source: str, scratch: Path) -> Iterator[dict[str, Map]]:
    """The empty maps by name, without pins, until the end of the block."""
    (scratch / "sources").mkdir()
    shutil.copy(Path(__file__).with_name(source), scratch / "sources")
    (compiled,) = compile_sources(str(scratch / "sources"), [source], str(scratch / "cache"), prebuilt_dir="")
    opened = OpenedObject(compiled.path)
    try:
        loaded = opened.load()
    finally:
        opened.close()
    made = {name: Map(name, fd) for name, fd in loaded.maps.items()}
    try:
        yield made
    finally:
        for each in made.values():
            each.close()

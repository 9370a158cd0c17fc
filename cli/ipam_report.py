"""The report of a check of addresses as a file: what `fimbria ipam release --from-report` starts from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.errors import BadInput, CliError
from cli.ipam_check import LEAKED, Check

VERSION = 1
LARGEST = 256 * 1024 * 1024


@dataclass(frozen=True, order=True)
class Leak:
    """One owner's allocation that the report calls leaked, with the addresses that it named."""

    node: str
    holder: str
    create_time: str
    addresses: tuple[str, ...]


def document(found: Check, create_time: str, min_age: int) -> dict[str, Any]:
    """The report as JSON. `create_time` is RFC 3339, `min_age` in seconds."""
    return {
        "version": VERSION,
        "create_time": create_time,
        "min_age_seconds": min_age,
        **found.document(),
    }


def write(path: Path, report: Mapping[str, Any]) -> None:
    """Replaces `path` with the report, readable by its owner only, as a whole or not at all."""
    from cli.lab.files import write_json

    try:
        write_json(path, report)
    except OSError as error:
        raise CliError(f"the report cannot be written to {path}: {error.strerror or error}") from None


def read_leaks(path: Path) -> list[Leak]:
    """The leaks that the report in `path` names, each owner's once. Raises BadInput naming what is wrong."""
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from None
    if len(data) > LARGEST:
        raise BadInput(f"{path} is larger than {LARGEST >> 20} MiB")
    try:
        report = json.loads(data)
    except (UnicodeDecodeError, ValueError) as error:
        raise _refused(path, f"is not JSON: {error}") from None
    if not isinstance(report, dict) or not isinstance(report.get("findings"), list):
        raise _refused(path, "is not a report: expected an object with a list `findings`")
    if report.get("version") != VERSION:
        raise _refused(path, f"version is {report.get('version')!r}; expected {VERSION}")
    held: dict[tuple[str, str, str], dict[str, None]] = {}
    for index, finding in enumerate(report["findings"]):
        if not isinstance(finding, dict) or not isinstance(finding.get("kind"), str):
            raise _refused(path, f"findings[{index}] is not a finding: expected an object with a `kind`")
        if finding["kind"] != LEAKED:
            continue
        node, holder, create_time, address = (
            _text(path, index, finding, key) for key in ("node", "holder", "create_time", "address")
        )
        held.setdefault((node, holder, create_time), {})[address] = None
    return [Leak(*key, tuple(addresses)) for key, addresses in held.items()]


def _text(path: Path, index: int, finding: Mapping[str, Any], key: str) -> str:
    value = finding.get(key)
    if not isinstance(value, str) or not value:
        raise _refused(path, f"findings[{index}].{key} is {value!r}; expected a text")
    if key == "create_time":
        from google.protobuf.timestamp_pb2 import Timestamp

        try:
            Timestamp().FromJsonString(value)
        except ValueError:
            raise _refused(
                path,
                f"findings[{index}].create_time is {value!r}; expected a time like 2026-01-31T12:00:00Z",
            ) from None
    return value


def _refused(path: Path, said: str) -> BadInput:
    return BadInput(f"{path}: {said}", hint="`fimbria ipam check --report FILE` writes a report")

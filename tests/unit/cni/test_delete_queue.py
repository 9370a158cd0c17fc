"""The directory of waiting DELs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from services.loader.cni.delete_queue import DeleteQueue, file_name


def payload(container_id: str = "c1", ifname: str = "eth0", command: str = "DEL", name: str = "n") -> bytes:
    return json.dumps(
        {
            "protocol": 1,
            "command": command,
            "containerId": container_id,
            "ifname": ifname,
            "config": {"cniVersion": "1.0.0", "name": name},
        }
    ).encode()


@pytest.fixture
def queue(tmp_path: Path) -> DeleteQueue:
    made = DeleteQueue(tmp_path / "deletes")
    made.create()
    return made


def names(queue: DeleteQueue) -> list[str]:
    return sorted(path.name for path in queue.directory.iterdir())


def test_files_and_directory_are_private(queue: DeleteQueue) -> None:
    queue.put("c1", "eth0", payload())
    assert queue.directory.stat().st_mode & 0o777 == 0o700
    assert (queue.directory / "c1@65746830.json").stat().st_mode & 0o777 == 0o600


def test_what_was_put_waits_oldest_first_and_is_gone_when_done(queue: DeleteQueue) -> None:
    for number, container in enumerate(("b", "a", "c")):
        queue.put(container, "eth0", payload(container))
        os.utime(queue.directory / file_name(container, "eth0"), (number, number))
    waiting = queue.waiting()
    assert [queued.request.container_id for queued in waiting] == ["b", "a", "c"]
    for queued in waiting:
        queue.done(queued)
    assert names(queue) == []


def test_a_missing_directory_holds_nothing(tmp_path: Path) -> None:
    assert DeleteQueue(tmp_path / "none").waiting() == []


def test_one_attachment_has_one_file_and_two_have_two(queue: DeleteQueue) -> None:
    queue.put("c1", "eth0", payload())
    queue.put("c1", "eth0", payload())
    queue.put("c1", "eth1", payload(ifname="eth1"))
    assert len(queue.waiting()) == 2
    assert queue.find("c1", "eth1") is not None
    assert queue.find("c2", "eth0") is None


def test_a_newer_del_is_not_forgotten_with_the_older(queue: DeleteQueue) -> None:
    queue.put("c1", "eth0", payload(name="old"))
    (older,) = queue.waiting()
    queue.put("c1", "eth0", payload(name="new"))
    queue.done(older)
    assert len(queue.waiting()) == 1


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        payload(command="CHECK"),
        payload(container_id="other"),
        payload(container_id="../x"),
        b"\0" * 9,
    ],
    ids=["empty", "cut", "list", "check", "other", "path", "zeros"],
)
def test_a_senseless_file_is_set_aside_once(queue: DeleteQueue, content: bytes) -> None:
    name = file_name("c1", "eth0")
    (queue.directory / name).write_bytes(content)
    queue.put("c2", "eth0", payload("c2"))
    assert [queued.request.container_id for queued in queue.waiting()] == ["c2"]
    assert names(queue) == sorted([f"{name}.bad", file_name("c2", "eth0")])
    assert (queue.directory / f"{name}.bad").read_bytes() == content
    assert len(queue.waiting()) == 1


def test_a_link_or_a_directory_in_place_of_a_file_is_set_aside(queue: DeleteQueue, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(payload())
    (queue.directory / file_name("c1", "eth0")).symlink_to(secret)
    (queue.directory / file_name("c2", "eth0")).mkdir()
    assert queue.waiting() == []
    assert all(name.endswith(".bad") for name in names(queue))
    assert secret.exists()


def test_half_written_files_are_not_seen(queue: DeleteQueue) -> None:
    (queue.directory / ".1-2.tmp").write_bytes(b"{")
    assert queue.waiting() == []
    assert names(queue) == [".1-2.tmp"]

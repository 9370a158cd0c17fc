"""Files that are whole or not there, and the lock between a lab's commands."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from cli.errors import CliError
from cli.lab.files import locked, read_json, write_json


def test_what_is_written_is_read_and_private(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_json(path, {"nodes": ["node-1"]})
    assert read_json(path) == {"nodes": ["node-1"]}
    assert path.stat().st_mode & 0o777 == 0o600
    assert [item.name for item in tmp_path.iterdir()] == ["state.json"]


def test_a_failed_write_leaves_the_old_content_and_no_scratch_file(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_json(path, 1)
    with pytest.raises(TypeError):
        write_json(path, object())
    assert read_json(path) == 1
    assert [item.name for item in tmp_path.iterdir()] == ["state.json"]


def test_a_missing_file_is_none_and_a_damaged_one_an_error_that_names_it(tmp_path: Path) -> None:
    assert read_json(tmp_path / "none.json") is None
    (tmp_path / "bad.json").write_text('{"nodes": ["no')
    with pytest.raises(CliError, match=r"bad\.json is damaged"):
        read_json(tmp_path / "bad.json")


def test_a_lock_keeps_others_out_until_it_is_released(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with locked(path):
        with pytest.raises(CliError) as caught, locked(path, timeout=0.05):
            raise AssertionError("two hold the lock")
        assert caught.value.reason == "LAB_BUSY"
    with locked(path, timeout=0.05):
        pass


def test_shared_holders_keep_out_an_exclusive_one_only(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with locked(path, shared=True), locked(path, shared=True, timeout=0.05):
        with pytest.raises(CliError), locked(path, timeout=0.05):
            raise AssertionError("an exclusive holder next to shared ones")


def test_a_lock_on_a_removed_file_is_taken_again_on_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    order: list[str] = []

    def second() -> None:
        with locked(path, timeout=5):
            order.append("second")

    with locked(path):
        waiter = threading.Thread(target=second)
        waiter.start()
        # As `lab down` does: the file goes while the lock is held, and somebody makes it anew.
        path.unlink()
        path.touch()
        order.append("first")
    waiter.join(5)
    assert order == ["first", "second"]


def test_errors_of_the_block_pass_through(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="inside"), locked(tmp_path / ".lock"):
        raise FileNotFoundError("inside")


def test_a_lock_in_a_missing_directory_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), locked(tmp_path / "gone" / ".lock"):
        raise AssertionError("locked nothing")

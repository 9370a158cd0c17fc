"""Files of the node's state are whole or not there, and nothing of a write that was cut short stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.loader.state_file import TEMPORARY, read_state, write_state


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    write_state(path, {"a": 1})
    write_state(path, {"a": 2})
    assert read_state(path) == {"a": 2}
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("before", [True, False])
def test_a_write_that_was_cut_short_leaves_nothing(tmp_path: Path, before: bool) -> None:
    path = tmp_path / "some.json"
    if before:
        write_state(path, {"a": 1})
    path.with_name(path.name + TEMPORARY).write_text('{"a"')
    if before:
        assert read_state(path) == {"a": 1}
    else:
        with pytest.raises(FileNotFoundError):
            read_state(path)
    assert list(tmp_path.iterdir()) == [path][: int(before)]


def test_what_is_no_object_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    path.write_text("[]")
    with pytest.raises(ValueError, match="no JSON object"):
        read_state(path)

"""Failpoints: chosen by the environment, known to the docs, and passed by somebody."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from services.loader.failpoints import PLACES, VARIABLE

REPOSITORY = Path(__file__).resolve().parents[3]
PROGRAM = """
from services.loader.failpoints import passed
for place in ("add.recorded", "add.linked", "add.recorded"):
    try:
        passed(place)
    except OSError as problem:
        print(problem)
    print(place)
"""


def run(chosen: str) -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, "-u", "-c", PROGRAM],
        env={VARIABLE: chosen} if chosen else {},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout.splitlines()


@pytest.mark.parametrize(
    ("chosen", "before"),
    [
        ("add.recorded", []),
        ("add.linked", ["add.recorded"]),
        ("add.recorded:2", ["add.recorded", "add.linked"]),
    ],
)
def test_the_process_is_killed_at_the_place(chosen: str, before: list[str]) -> None:
    assert run(chosen) == (-signal.SIGKILL, before)


def test_an_error_is_raised_once() -> None:
    code, told = run("add.recorded!ENOSPC")
    assert code == 0
    assert told == ["[Errno 28] failpoint add.recorded", "add.recorded", "add.linked", "add.recorded"]


def test_nothing_happens_at_other_places_or_without_a_choice() -> None:
    everything = (0, ["add.recorded", "add.linked", "add.recorded"])
    assert run("") == run("slot.row") == everything


def test_a_directory_lets_one_choose_later_and_notes_what_is_passed(tmp_path: Path) -> None:
    assert run(str(tmp_path))[0] == 0
    assert (tmp_path / "passed").read_text().split() == ["add.recorded", "add.linked", "add.recorded"]
    (tmp_path / "chosen").write_text("add.linked\n")
    assert run(str(tmp_path)) == (-signal.SIGKILL, ["add.recorded"])


def test_every_place_is_passed_somewhere_and_no_other() -> None:
    sources = list((REPOSITORY / "services" / "loader").rglob("*.py"))
    named = {place for path in sources for place in re.findall(r'\bpassed\(\s*"([\w.]+)"', path.read_text())}
    assert named == set(PLACES)


def test_every_place_is_in_the_docs() -> None:
    text = (REPOSITORY / "docs" / "crash-safety.md").read_text()
    listed = re.findall(r"`([a-z_]+\.[a-z_]+)`", text[text.index("## Places") :])
    assert {each for each in listed if not each.endswith(".py")} == set(PLACES)

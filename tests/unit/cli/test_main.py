"""The command line: exit codes, one-line errors, quick start."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cli.__main__ import COMMANDS, cli, run
from cli.client import from_service
from services.chassis.errors import ResourceExhausted


def test_every_command_of_the_tree_can_be_loaded() -> None:
    import click

    context = click.Context(cli)
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None and command.name == name
        assert command.help


def test_help_imports_nothing_heavy_and_lists_the_exit_codes() -> None:
    code = (
        "import sys; from cli.__main__ import run; run(['--help']); "
        "heavy = {'grpc', 'yaml', 'google.protobuf', 'sqlalchemy', 'pyroute2'} & set(sys.modules);"
        "sys.exit(repr(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Exit codes" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["lab", "up", "--bogus"], "--bogus"),
        (["lab", "run"], "NS/NAME"),
        (["nonsense"], "nonsense"),
        (["lab", "run", "web"], "NAMESPACE/NAME"),
        (["lab", "run", "shop/web", "--label", "x"], "KEY=VALUE"),
        (["lab", "run", "shop/web", "--port", "80/TCP"], "http:80/TCP"),
        (["lab", "up", "--nodes", "0"], "--nodes 0"),
        (["lab", "probe", "a/b", "c/d", "99999/TCP"], "99999/TCP"),
        (["lab", "probe", "a/b", "c/d", "80/TCP", "--timeout", "0"], "--timeout"),
        (["policy", "apply", "-f", "/nonexistent.yaml"], "/nonexistent.yaml"),
        (["policy", "delete"], "nothing was named"),
        (["map", "resize", "ct4", "many"], "ENTRIES 'many' is not valid"),
        (["map", "resize", "ct4", "0"], "or default"),
        (["map", "dump", "ct4", "--limit", "0"], "--limit"),
        (["map", "pressure", "--over", "101"], "--over"),
        (["trace", "show", "abc", "--root", "cni.add"], "--root"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(["--dir", str(tmp_path / "lab"), *arguments]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    first, *rest = told.err.splitlines()
    assert first.startswith("error: ") and said in first
    assert all(line.startswith("hint: ") for line in rest)
    assert not (tmp_path / "lab").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["lab", "list"],
        ["lab", "delete", "shop/web"],
        ["lab", "label", "shop/web", "a=b"],
        ["lab", "namespace", "set", "shop", "a=b"],
        ["lab", "exec", "shop/web", "--", "true"],
        ["lab", "probe", "a/b", "c/d", "80/TCP"],
        ["lab", "run", "shop/web"],
        ["lab", "status"],
        ["policy", "list"],
        ["status"],
        ["endpoint", "list"],
        ["flows"],
        ["trace", "list"],
        ["map", "list"],
        ["map", "dump", "ct4"],
        ["map", "pressure"],
        ["map", "resize", "ct4", "1000"],
        ["prog", "list"],
        ["reload"],
        ["ipam", "check"],
        ["pool", "list"],
        ["pool", "extend", "blue", "10.0.0.0/8"],
        ["node", "delete", "node-1"],
        ["identity", "status"],
        ["identity", "filter", "set", "--default"],
        ["ip", "list", "--on-hold"],
    ],
)
def test_without_a_lab_every_command_says_how_to_start_one(
    arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(["--dir", str(tmp_path / "none"), *arguments]) == 3
    told = capsys.readouterr().err
    assert told.startswith("error: there is no lab in")
    assert "fimbria lab up" in told
    assert not (tmp_path / "none").exists()


def test_a_service_that_is_down_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIMBRIA_IPAM_TARGET", "unix:/nonexistent/ipam.sock")
    assert run(["node", "list"]) == 3
    told = capsys.readouterr().err
    assert told.startswith("error: cannot reach")
    assert "SERVICE_UNAVAILABLE" in told


def test_what_a_service_says_would_help_is_the_hint() -> None:
    full = ResourceExhausted("all are held", reason="POOL_EXHAUSTED", metadata={"help": "extend the pool"})
    shown = from_service(full)
    assert (shown.hint, shown.reason, shown.exit_code) == ("extend the pool", "POOL_EXHAUSTED", 1)


def test_removing_a_lab_that_is_not_there_is_no_error(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(["lab", "down", "--dir", str(tmp_path / "none"), "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["processes"] == 0


def test_a_directory_of_somebody_else_is_left_alone(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    for command in ("up", "down"):
        assert run(["lab", command, "--dir", str(tmp_path)]) == 2
        assert "is not a lab" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]

"""What the machine lacks is said in one line, and nothing is made."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cli.lab import preflight
from cli.lab.paths import BPFFS

pytestmark = pytest.mark.cluster


def up(where: Path, *prefix: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [*prefix, sys.executable, "-m", "cli", "--dir", str(where / "lab"), "lab", "up"]
    environ = None if path is None else {"PATH": path}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environ)


def refused(done: subprocess.CompletedProcess[str], reason: str, where: Path, code: int = 1) -> str:
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    first = done.stderr.splitlines()[0]
    assert first.startswith("error: ") and f"[{reason}]" in first
    assert not (where / "lab").exists()
    return done.stderr


def test_without_root_a_lab_is_refused(tmp_path: Path) -> None:
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    assert "sudo" in refused(up(tmp_path, *nobody), "NOT_ROOT", tmp_path)


def test_root_without_a_capability_is_told_which(tmp_path: Path) -> None:
    weaker = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]
    assert "CAP_SYS_ADMIN" in refused(up(tmp_path, *weaker), "CAPABILITY_MISSING", tmp_path)


def test_a_missing_clang_is_named_with_its_package(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("ip", "mount"):
        (tools / tool).symlink_to(shutil.which(tool) or "")
    told = refused(up(tmp_path, path=str(tools)), "COMPILER_MISSING", tmp_path)
    assert "apt-get install clang" in told


def test_a_missing_plugin_is_named_with_its_make_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cli.errors import CliError
    from cli.lab.lab import Lab

    monkeypatch.setattr(preflight, "CNI_PLUGIN", tmp_path / "none")
    with pytest.raises(CliError) as caught:
        Lab(tmp_path / "lab").up()
    assert (caught.value.reason, caught.value.hint) == ("CNI_PLUGIN_MISSING", "run `make build`")
    assert not (tmp_path / "lab").exists()


def test_an_unmounted_bpffs_is_mounted_and_told(tmp_path: Path) -> None:
    # In a mount namespace of its own: the host's stays as it is.
    script = (
        f"umount {BPFFS} || true; {sys.executable} -c "
        f"'from cli.lab import preflight; preflight.check(); assert preflight.bpffs_mounted()'"
    )
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"mounted the BPF file system on {BPFFS}" in done.stderr


def test_a_directory_too_deep_for_sockets_is_refused(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    done = up(deep)
    assert done.returncode == 2
    assert "too long for unix sockets" in done.stderr
    assert not deep.exists()


def test_a_directory_that_cannot_be_made_is_an_error_of_one_line() -> None:
    done = up(Path("/proc/nonexistent"))
    assert done.returncode == 1
    assert done.stderr.startswith("error: cannot make /proc/nonexistent")
    assert len(done.stderr.splitlines()) == 1

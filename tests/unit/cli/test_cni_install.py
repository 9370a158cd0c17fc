"""`fimbria cni conflist` and `fimbria cni install`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli import cni_install
from cli.commands.cni import cni
from cli.errors import BadInput, CliError
from services.loader.cni.errors import SUPPORTED_VERSIONS


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    built = tmp_path / "fimbria-cni"
    built.write_bytes(b"\x7fELF plugin")
    monkeypatch.setattr(cni_install, "CNI_PLUGIN", built)
    return built


def test_the_configuration_names_what_the_loader_speaks() -> None:
    assert cni_install.VERSIONS == SUPPORTED_VERSIONS
    shown = json.loads(CliRunner().invoke(cni, ["conflist", "--mtu", "1400"]).output)
    assert (shown["cniVersion"], shown["name"]) == ("1.0.0", "fimbria")
    (plugin,) = shown["plugins"]
    assert (plugin["type"], plugin["mtu"]) == ("fimbria-cni", 1400)
    assert plugin["socket"] == "/run/fimbria/cni.sock"


def test_the_example_in_deploy_is_what_the_command_prints() -> None:
    example = Path(__file__).parents[3] / "deploy" / "cni" / cni_install.CONFLIST
    assert json.loads(example.read_text()) == cni_install.conflist("/run/fimbria/cni.sock", "fimbria", 0)


def test_installing_puts_both_in_place_and_again_replaces_them(tmp_path: Path, plugin: Path) -> None:
    bin_dir, conf_dir = tmp_path / "opt" / "bin", tmp_path / "etc" / "net.d"
    arguments = ["install", "--bin-dir", str(bin_dir), "--conf-dir", str(conf_dir)]
    for content in (b"one", b"two"):
        plugin.write_bytes(content)
        done = CliRunner().invoke(cni, arguments)
        assert done.exit_code == 0, done.output
        assert (bin_dir / "fimbria-cni").read_bytes() == content
    assert (bin_dir / "fimbria-cni").stat().st_mode & 0o777 == 0o755
    assert (conf_dir / "10-fimbria.conflist").stat().st_mode & 0o777 == 0o644
    assert os.listdir(bin_dir) == ["fimbria-cni"]
    assert os.listdir(conf_dir) == ["10-fimbria.conflist"]
    assert done.output.splitlines() == [str(bin_dir / "fimbria-cni"), str(conf_dir / "10-fimbria.conflist")]


def test_a_configuration_that_comes_first_is_told(tmp_path: Path, plugin: Path) -> None:
    (tmp_path / "05-bridge.conflist").write_text("{}")
    (tmp_path / "99-loopback.conf").write_text("{}")
    (tmp_path / "00-notes.txt").write_text("")
    done = CliRunner().invoke(
        cni, ["install", "--bin-dir", str(tmp_path / "bin"), "--conf-dir", str(tmp_path)]
    )
    assert "05-bridge.conflist" in done.output
    assert "99-loopback" not in done.output
    assert "00-notes" not in done.output


@pytest.mark.parametrize(
    ("socket", "name", "mtu", "told"),
    [
        ("relative", "fimbria", 0, "--socket"),
        ("/" + "x" * 107, "fimbria", 0, "--socket"),
        ("/s", "", 0, "--name"),
        ("/s", "-x", 0, "--name"),
        ("/s", "a b", 0, "--name"),
        ("/s", "fimbria", 100, "--mtu"),
        ("/s", "fimbria", 70000, "--mtu"),
    ],
)
def test_what_would_not_work_is_refused(socket: str, name: str, mtu: int, told: str) -> None:
    with pytest.raises(BadInput, match=told):
        cni_install.conflist(socket, name, mtu)


def test_a_directory_that_cannot_be_is_told(tmp_path: Path, plugin: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CliError, match=r"cannot install .*file/bin/fimbria-cni"):
        cni_install.install({}, tmp_path / "file" / "bin", tmp_path / "conf")
    plugin.unlink()
    with pytest.raises(CliError, match="is not built"):
        cni_install.install({}, tmp_path / "bin", tmp_path / "conf")

"""What a loader needs and does not find is said in one line, and nothing is begun."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.kernel.loader.rig import Rig

pytestmark = pytest.mark.kernel


def refused(rig: Rig, *flags: str, path: str | None = None) -> str:
    """The last line of a loader that is expected not to start; it runs beside the node's own, with a state
    of its own.
    """
    node = rig.nodes[0]
    state = rig.directory / "refused"
    done = subprocess.run(
        [*node.loader.arguments, f"--state-dir={state}", f"--ready-file={state}.ready", *flags],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PATH": path or os.environ["PATH"]},
    )
    assert done.returncode in (1, 2), done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


def test_a_pin_directory_that_is_not_on_bpffs(rig: Rig, tmp_path: Path) -> None:
    line = refused(rig, f"--pin-dir={tmp_path}/pins")
    assert f"{tmp_path}/pins is not on a BPF file system" in line
    assert "mount -t bpf" in line


def test_a_missing_compiler(rig: Rig, tmp_path: Path) -> None:
    nsenter = shutil.which("nsenter")
    assert nsenter is not None
    (tmp_path / "nsenter").symlink_to(nsenter)
    line = refused(
        rig, f"--cache-dir={tmp_path}/cache", f"--prebuilt-dir={tmp_path}/none", path=str(tmp_path)
    )
    assert "install clang" in line


def test_an_address_of_no_device(rig: Rig) -> None:
    assert "no device of this node has the address 172.31.9.9" in refused(
        rig, "--node-name=other", "--node-ipv4=172.31.9.9"
    )


def test_an_unknown_pool(rig: Rig) -> None:
    line = refused(rig, "--node-name=another", "--node-ipv4=172.31.9.8", "--pool=nowhere")
    assert "pool 'nowhere' does not exist" in line


def test_a_state_directory_that_cannot_be(rig: Rig) -> None:
    assert "/proc/nowhere" in refused(rig, "--state-dir=/proc/nowhere")


def test_a_setting_out_of_range(rig: Rig) -> None:
    assert "--vxlan-port is '0'; expected a whole number from 1 to 65535" in refused(rig, "--vxlan-port=0")


def test_a_setting_that_makes_no_sense(rig: Rig) -> None:
    line = refused(rig, "--masquerade-ports=80-90")
    assert "FIMBRIA_MASQUERADE_PORTS is '80-90'; expected FIRST-LAST" in line


def test_a_device_that_is_not_there(rig: Rig) -> None:
    assert "FIMBRIA_DEVICES names eth7, and this node has no such device" in refused(rig, "--devices=eth7")


def test_an_ipv6_address_of_no_device(rig: Rig) -> None:
    assert "no device of this node has the address 2001:db8::99" in refused(rig, "--node-ipv6=2001:DB8::99")

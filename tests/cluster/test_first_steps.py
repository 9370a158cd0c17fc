"""What a newcomer types, in that order: a lab, two pods, a probe, a policy, and nothing left at the end."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli import client
from cli.__main__ import run
from cli.lab import cni, processes, runtime, sweep
from cli.lab.paths import LabPaths
from tests.cluster.conftest import CLIENT, STRANGER, WEB
from tests.cluster.policies import CLIENT_TO_WEB
from tests.patience import SLOWNESS, patient

pytestmark = pytest.mark.cluster

DENIED = 4


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a lab waits for takes longer in a machine that is slower."""
    for module, name in ((processes, "READY_TIMEOUT"), (runtime, "SETTLE_TIMEOUT"), (cni, "TIMEOUT")):
        monkeypatch.setattr(module, name, patient(getattr(module, name)))
    for function in (client.call, client.pages):
        defaults = function.__kwdefaults__ or {}
        monkeypatch.setitem(defaults, "timeout", patient(defaults["timeout"]))


def test_a_lab_from_up_to_down(tmp_path: Path) -> None:
    directory = tmp_path / "lab"
    manifest = tmp_path / "policy.yaml"
    manifest.write_text(CLIENT_TO_WEB)

    def fimbria(*arguments: str) -> int:
        return run(["--dir", str(directory), *arguments])

    def probe(source: str, port: str) -> int:
        return fimbria("lab", "probe", source, WEB, port, "--timeout", str(patient(0.5)))

    try:
        # gRPC gives a handshake 20 s, whoever asks; one that is up may be told so again.
        assert fimbria("lab", "up") == 0 or (SLOWNESS > 1 and fimbria("lab", "up") == 0)
        assert fimbria("lab", "run", WEB, "--label", "app=web", "--port", "http:80/TCP") == 0
        assert fimbria("lab", "run", CLIENT, "--label", "app=client") == 0
        assert fimbria("lab", "run", STRANGER, "--label", "app=stranger") == 0
        assert probe(STRANGER, "80/TCP") == 0
        assert fimbria("policy", "apply", "-f", str(manifest)) == 0
        assert probe(CLIENT, "80/TCP") == 0
        assert probe(STRANGER, "80/TCP") == DENIED
        assert probe(CLIENT, "81/TCP") == DENIED
        assert fimbria("lab", "delete", STRANGER) == 0
    finally:
        assert fimbria("lab", "down") == 0
    assert sweep.leftovers(LabPaths.of(directory)) == []
    assert not directory.exists()

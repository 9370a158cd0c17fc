"""Which cluster the CLI talks to."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.errors import BadInput, ServiceUnavailable
from cli.lab.files import write_json
from cli.lab.paths import LabPaths
from cli.targets import resolve


@pytest.fixture
def lab(tmp_path: Path) -> LabPaths:
    paths = LabPaths.of(tmp_path)
    write_json(paths.state, {"nodes": ["node-1", "node-2"]})
    return paths


def test_a_lab_is_found_by_its_directory(lab: LabPaths) -> None:
    found = resolve(str(lab.directory), {})
    assert found.service("policy") == f"unix:{lab.directory}/run/policy.sock"
    assert list(found.loaders) == ["node-1", "node-2"]
    assert found.trace_file == lab.directory / "traces" / "cli.jsonl"
    assert resolve(None, {"FIMBRIA_LAB_DIR": str(lab.directory)}) == found


def test_the_environment_names_another_cluster(lab: LabPaths) -> None:
    environ = {
        "FIMBRIA_POLICY_TARGET": "dns:///policy:4003",
        "FIMBRIA_LOADER_TARGETS": "a=ipv4:10.0.0.1:4004, b=ipv4:10.0.0.2:4004",
        "FIMBRIA_LAB_DIR": str(lab.directory),
    }
    found = resolve(None, environ)
    assert found.service("policy") == "dns:///policy:4003"
    assert found.loader("b") == "ipv4:10.0.0.2:4004"
    assert found.trace_file is None
    with pytest.raises(BadInput) as caught:
        found.service("ipam")
    assert caught.value.hint == "set FIMBRIA_IPAM_TARGET"
    # A directory that was asked for goes before the environment.
    assert resolve(str(lab.directory), environ).trace_file is not None


def test_no_lab_is_a_service_that_cannot_be_reached(tmp_path: Path) -> None:
    with pytest.raises(ServiceUnavailable) as caught:
        resolve(str(tmp_path / "none"), {})
    assert caught.value.exit_code == 3
    assert "fimbria lab up" in caught.value.hint


def test_malformed_loader_targets_are_refused() -> None:
    with pytest.raises(BadInput, match="NODE=TARGET"):
        resolve(None, {"FIMBRIA_LOADER_TARGETS": "node-1"})


def test_an_unknown_node_is_refused_with_those_that_are_known(lab: LabPaths) -> None:
    with pytest.raises(BadInput, match="node-1, node-2"):
        resolve(str(lab.directory), {}).loader("node-9")

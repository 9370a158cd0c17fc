"""What a lab with replicas consists of."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.errors import BadInput, CliError
from cli.lab import databases
from cli.lab.databases import Databases, check_replicas
from cli.lab.files import write_json
from cli.lab.network import Network
from cli.lab.paths import LabPaths
from cli.lab.processes import specs
from cli.targets import resolve


def test_each_service_has_its_replicas_under_names_of_their_own(tmp_path: Path) -> None:
    made = specs(LabPaths.of(tmp_path), ["node-1"], Network(), 2)
    assert [each.name for each in made] == [
        *("ipam", "ipam-2", "identity", "identity-2", "policy", "policy-2"),
        "node-1",
    ]
    assert len({each.environ["FIMBRIA_LISTEN"] for each in made}) == len(made)
    assert {each.environ["FIMBRIA_INSTANCE"] for each in made} == {each.name for each in made}
    stores = {each.environ.get("FIMBRIA_DATABASE_URL") for each in made[:-1]}
    assert len(stores) == 1 and str(stores.pop()).startswith("postgresql://")


def test_loaders_policy_and_the_command_line_know_all_replicas(tmp_path: Path) -> None:
    paths = LabPaths.of(tmp_path)
    *services, loader = specs(paths, ["node-1"], Network(), 3)
    target = f"unix:{paths.run}/identity.sock,{paths.run}/identity-2.sock,{paths.run}/identity-3.sock"
    assert loader.environ["FIMBRIA_IDENTITY_TARGET"] == target
    assert services[-1].environ["FIMBRIA_IDENTITY_TARGET"] == target
    write_json(paths.state, {"nodes": ["node-1"], "replicas": 3})
    assert resolve(str(tmp_path), {}).service("identity") == target


def test_one_replica_is_on_sqlite_as_ever(tmp_path: Path) -> None:
    paths = LabPaths.of(tmp_path)
    ipam, *_, loader = specs(paths, ["node-1"], Network())
    assert ipam.environ["FIMBRIA_DATABASE_URL"] == f"sqlite:///{paths.data}/ipam.db"
    assert loader.environ["FIMBRIA_IPAM_TARGET"] == f"unix:{paths.run}/ipam.sock"
    assert not Databases(paths).shared and not Databases(paths).missing


@pytest.mark.parametrize("replicas", [0, -1, 6])
def test_other_numbers_are_refused(replicas: int) -> None:
    with pytest.raises(BadInput, match=f"--replicas {replicas} is not valid: expected 1 to 5"):
        check_replicas(replicas)


def test_a_link_that_somebody_has_put_in_the_servers_place_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cli.lab.paths.POSTGRES_PARENT", tmp_path)
    paths = LabPaths.of(tmp_path / "lab")
    (tmp_path / "precious").mkdir()
    paths.postgres.symlink_to(tmp_path / "precious")
    with pytest.raises(CliError, match="belongs to somebody else"):
        databases.remove_server(paths)
    assert (tmp_path / "precious").is_dir()

"""The records of pods: one claim for a name, whoever dies."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from cli.errors import CliError
from cli.lab.paths import LabPaths
from cli.lab.pods import Pod, PodStore
from cli.lab.process import ProcessId
from cli.lab.syntax import NamedPort, PodRef

WEB = PodRef("shop", "web")
NODES = ["node-1", "node-2"]


@pytest.fixture
def store(tmp_path: Path) -> PodStore:
    paths = LabPaths.of(tmp_path)
    for folder in paths.folders:
        folder.mkdir()
    return PodStore(paths)


def claim(store: PodStore, ref: PodRef = WEB) -> Pod:
    pod, _ = store.claim(ref, "", {"app": "web"}, (NamedPort("http", 80, "TCP"),), NODES)
    return pod


def dead() -> ProcessId:
    return ProcessId(os.getpid(), 1)


def test_a_record_is_read_as_it_was_written(store: PodStore) -> None:
    pod = dataclasses.replace(
        claim(store),
        state="ready",
        ips=("10.244.1.7",),
        endpoint_id=4,
        service_account="front",
        annotations={"fimbria.io/ip-pool": "blue"},
        result={"a": 1},
    )
    store.put(pod)
    assert store.find(WEB) == pod
    assert store.get(WEB) == pod
    assert store.all() == [pod]
    store.remove(WEB)
    assert store.find(WEB) is None


def test_pods_go_where_the_fewest_are(store: PodStore) -> None:
    assert [claim(store, PodRef("shop", f"p{n}")).node for n in range(4)] == ["node-1", "node-2"] * 2


def test_a_name_that_is_taken_is_refused_in_every_state(store: PodStore) -> None:
    pod = claim(store)
    for state in ("creating", "ready", "deleting"):
        store.put(dataclasses.replace(pod, state=state))
        with pytest.raises(CliError) as caught:
            claim(store)
        assert caught.value.reason == "POD_EXISTS"


def test_a_name_whose_maker_died_is_taken_over_with_what_it_left(store: PodStore) -> None:
    pod = dataclasses.replace(claim(store), owner=dead())
    store.put(pod)
    again, before = store.claim(WEB, "node-2", {}, (), NODES)
    assert before == pod and again.container_id != pod.container_id
    # Until what is left is removed, the record still names the older container.
    found = store.find(WEB)
    assert found is not None and found.container_id == pod.container_id
    with pytest.raises(CliError):
        claim(store)


def test_a_pod_that_is_not_ready_is_told_apart_from_none(store: PodStore) -> None:
    with pytest.raises(CliError, match=r"there is no pod shop/web$"):
        store.get(WEB)
    claim(store)
    with pytest.raises(CliError, match="it is creating"):
        store.get(WEB)


def test_a_namespace_always_has_its_name_as_a_label(store: PodStore) -> None:
    name = {"kubernetes.io/metadata.name": "shop"}
    assert store.namespace_labels("shop") == name
    store.set_namespace_labels("shop", {"team": "a"})
    assert store.namespace_labels("shop") == {"team": "a", **name}
    claim(store, PodRef("other", "x"))
    assert store.namespaces() == ["other", "shop"]


def test_a_namespaces_annotations_are_kept_apart_from_its_labels(store: PodStore) -> None:
    assert store.namespace_annotations("shop") == {}
    store.set_namespace_annotations("shop", {"fimbria.io/ip-pool": "blue"})
    assert store.namespaces() == ["shop"]
    assert store.namespace_labels("shop") == {"kubernetes.io/metadata.name": "shop"}
    store.set_namespace_labels("shop", {"team": "a"})
    assert store.namespaces() == ["shop"]
    assert store.namespace_annotations("shop") == {"fimbria.io/ip-pool": "blue"}
    assert store.namespace_labels("shop")["team"] == "a"

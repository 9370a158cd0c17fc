"""The Kubernetes network-policy suite as traffic: nine pods on two nodes and real connections."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cli.commands.policy import apply_manifests, wait_enforced
from cli.errors import CliError
from cli.lab.lab import Lab
from tests.conformance.cases import Case, Probe, Stage, cases, ip_blocks

pytestmark = pytest.mark.cluster

SUITE = cases("k8s-e2e-")
SUPPORTED = [case for case in SUITE if not any(ip_blocks(manifest) for manifest in case.manifests)]
REFUSED = [case for case in SUITE if case not in SUPPORTED]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab with the suite's namespaces and pods; every case uses the same ones."""
    lab = Lab(tmp_path_factory.mktemp("suite") / "lab")
    lab.up(nodes=2)
    try:
        _populate(lab, SUITE[0])
        yield lab
    finally:
        lab.down()


def _populate(lab: Lab, case: Case) -> None:
    for name, labels in case.namespaces.items():
        lab.set_namespace(name, [f"{key}={value}" for key, value in labels.items()])
    for number, pod in enumerate(case.pods):
        lab.run(
            f"{pod['ns']}/{pod['name']}",
            node=f"node-{number % 2 + 1}",
            labels=[f"{key}={value}" for key, value in pod["labels"].items()],
            ports=[f"{port['name']}:{port['port']}/{port['proto']}" for port in pod["ports"]],
        )


@pytest.fixture
def clean(lab: Lab) -> Iterator[Lab]:
    """The lab, with policies and labels put back afterwards."""
    yield lab
    _delete_policies(lab)
    case = SUITE[0]
    rows = {f"{row['namespace']}/{row['name']}": row["labels"] for row in lab.pods()}
    for name, labels in case.namespaces.items():
        _relabel_namespace(lab, name, labels)
    for pod in case.pods:
        reference = f"{pod['ns']}/{pod['name']}"
        if rows[reference] != pod["labels"]:
            lab.label(reference, _changes(rows[reference], pod["labels"]))


def _delete_policies(lab: Lab) -> None:
    from fimbria.policy.v1 import policy_pb2

    policies = lab.cluster.policies
    listed = policies.ListPolicies(policy_pb2.ListPoliciesRequest(page_size=1000), timeout=10)
    if listed.policies:
        request = policy_pb2.DeletePoliciesRequest(keys=[policy.key for policy in listed.policies])
        wait_enforced(lab.cluster, policies.DeletePolicies(request, timeout=10).revision, 20)


def _changes(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    removed = [f"{key}-" for key in before if key not in after]
    return removed + [f"{key}={value}" for key, value in after.items() if before.get(key) != value]


_NAMESPACE_LABELS: dict[str, dict[str, str]] = {}


def _relabel_namespace(lab: Lab, name: str, labels: Mapping[str, str]) -> None:
    before = _NAMESPACE_LABELS.get(name, dict(labels))
    changes = _changes(before, labels)
    if changes:
        lab.set_namespace(name, changes)
    _NAMESPACE_LABELS[name] = dict(labels)


def _act(lab: Lab, stage: Stage) -> None:
    created = [a["policy"] for a in stage.actions if a["action"] in ("create_policy", "update_policy")]
    if created:
        apply_manifests(lab.cluster, "\n---\n".join(json.dumps(manifest) for manifest in created))
    for action in stage.actions:
        _act_one(lab, action)


def _act_one(lab: Lab, action: Mapping[str, Any]) -> None:
    match action["action"]:
        case "create_policy" | "update_policy":
            pass
        case "delete_policy":
            from fimbria.policy.v1 import policy_pb2

            key = policy_pb2.PolicyKey(
                kind="NetworkPolicy", namespace=action["namespace"], name=action["name"]
            )
            deleted = lab.cluster.policies.DeletePolicies(
                policy_pb2.DeletePoliciesRequest(keys=[key]), timeout=10
            )
            assert list(deleted.deleted) == [key]
            wait_enforced(lab.cluster, deleted.revision, 20)
        case "set_namespace_labels":
            name = action["namespace"]
            _NAMESPACE_LABELS.setdefault(name, dict(SUITE[0].namespaces[name]))
            _relabel_namespace(lab, name, action["labels"])
        case "set_pod_labels":
            reference = f"{action['namespace']}/{action['pod']}"
            before = next(r["labels"] for r in lab.pods() if f"{r['namespace']}/{r['name']}" == reference)
            lab.label(reference, _changes(before, action["labels"]))
        case other:
            raise AssertionError(f"the case asks for an action that this runner does not know: {other}")


def _probe(lab: Lab, probes: list[Probe], family: int) -> list[str]:
    """The probes that did not come out as expected."""
    asked = [(probe.source, probe.target, probe.port, probe.protocol) for probe in probes]
    results = lab.probe_many(asked, family=family, timeout=0.8)
    assert len(results) == len(probes)
    return [
        f"{probe} over IPv{family}: expected {'allowed' if probe.allowed else 'denied'}, "
        f"was {result.verdict} ({result.how})"
        for probe, result in zip(probes, results, strict=True)
        if result.allowed != probe.allowed
    ]


@pytest.mark.parametrize("case", SUPPORTED, ids=lambda case: case.id)
def test_every_probe_comes_out_as_published(clean: Lab, case: Case) -> None:
    for number, stage in enumerate(case.stages):
        _act(clean, stage)
        # What a policy says of pods it says of all their addresses.
        with ThreadPoolExecutor() as pool:
            told = pool.map(lambda family: _probe(clean, list(stage.probes), family), (4, 6))  # noqa: B023
        wrong = [each for probes in told for each in probes]
        assert not wrong, f"{case.id} ({case.description}), stage {number}:\n" + "\n".join(wrong)


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.id)
def test_a_policy_that_selects_by_cidr_is_refused_with_the_fields_path(clean: Lab, case: Case) -> None:
    for manifest in case.manifests:
        if not (paths := ip_blocks(manifest)):
            continue
        text = re.sub(r"\{\{ip:[^}]*\}\}", "10.0.0.1", json.dumps(manifest)).replace(
            "{{podcidr}}", "10.0.0.0/8"
        )
        with pytest.raises(CliError) as refusal:
            apply_manifests(clean.cluster, text)
        assert all(path in str(refusal.value.violations) for path in paths)


def test_the_suite_is_complete() -> None:
    assert len(SUITE) == 52
    assert len(REFUSED) == 4
    assert Path(__file__).with_name("netpol_cases.json").exists()

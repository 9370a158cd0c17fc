"""A client that nobody here wrote, `buf curl`, knows every service of a running lab by reflection and calls
every method of it.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from cli.commands.policy import apply_manifests
from cli.lab.lab import Lab
from tests.cluster.conftest import CLIENT, WEB
from tests.service.curl import call, first, listed

pytestmark = pytest.mark.cluster

PACKAGES = ("ipam", "identity", "policy", "loader")
POLICY = (Path(__file__).parents[2] / "docs" / "examples" / "web.yaml").read_text()
KEY = {"kind": "CiliumNetworkPolicy", "namespace": "shop", "name": "web"}


def _methods(package: str) -> dict[str, bool]:
    """Every `package.Service/Method` of the protos, and whether the server streams."""
    module = importlib.import_module(f"fimbria.{package}.v1.{package}_pb2")
    return {
        f"{service.full_name}/{method.name}": method.server_streaming
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }


def _target(lab: Lab, package: str) -> str:
    """Where the package's service is found: by TCP, and a loader by its unix socket."""
    if package == "loader":
        return str(lab.paths.socket("node-1"))
    rows = {row["name"]: row["addresses"] for row in lab.status()}
    return str(next(address for address in rows[package] if not address.startswith("unix:")))


def _requests(lab: Lab) -> dict[str, dict[str, Any]]:
    """A request for every method, in an order in which all of them can be called."""
    pods = {f"{row['namespace']}/{row['name']}": row for row in lab.pods()}
    web, client = pods[WEB], pods[CLIENT]
    endpoint = web["endpoint_id"]
    labels = list(lab.cluster.endpoints("node-1").GetEndpoint(_endpoint(endpoint)).labels)
    identity = {"id": web["identity"]}
    entry = {"prefix": "198.51.100.1/32", "identity": 2, "owner": "a stranger"}
    ipam, ident, policy, loader = (f"fimbria.{package}.v1" for package in PACKAGES)
    return {
        f"{ipam}.NodeService/RegisterNode": {"name": "node-9", "ipv4": "172.31.1.99"},
        f"{ipam}.NodeService/GetNode": {"name": "node-9"},
        f"{ipam}.NodeService/ListNodes": {},
        f"{ipam}.NodeService/WatchNodes": {},
        f"{ipam}.AddressService/Allocate": {"node": "node-9", "owner": "stranger"},
        f"{ipam}.AddressService/ListAddresses": {"node": "node-9"},
        f"{ipam}.AddressService/CheckAddresses": {
            "node": "node-9",
            "endpoints": [{"owner": "another", "addresses": ["10.244.255.9"]}],
        },
        f"{ipam}.AddressService/Release": {"node": "node-9", "owner": "stranger"},
        f"{ipam}.AddressService/AllocateBatch": {"node": "node-9", "owners": ["one", "two"]},
        f"{ipam}.AddressService/ReleaseBatch": {
            "node": "node-9",
            "holdings": [
                {"owner": "one"},
                {"owner": "two", "ifCreateTime": "2001-01-01T00:00:00Z"},
                {"owner": "nobody"},
            ],
        },
        f"{ipam}.NodeService/DeleteNode": {"name": "node-9", "force": True},
        f"{ipam}.PoolService/CreatePool": {"name": "spare", "cidrs": ["10.9.0.0/16"], "nodeMaskSize": 24},
        f"{ipam}.PoolService/GetPool": {"name": "spare"},
        f"{ipam}.PoolService/ListPools": {},
        f"{ipam}.PoolService/UpdatePool": {
            "name": "spare",
            "cidrs": ["10.9.0.0/16", "10.10.0.0/16"],
            "excluded": ["10.9.0.0/28"],
            "podSelector": {"matchLabels": {"tier": "spare"}},
        },
        f"{ipam}.PoolService/DeletePool": {"name": "spare"},
        f"{ident}.IdentityService/Resolve": {"labels": labels},
        f"{ident}.IdentityService/ResolvePrefixes": {"prefixes": ["203.0.113.0/24"]},
        f"{ident}.IdentityService/ReportUse": {
            "holder": "node/stranger",
            "identities": [web["identity"], 65000],
        },
        f"{ident}.IdentityService/ListHolders": {"pageSize": 100},
        f"{ident}.IdentityService/EndUse": {"holder": "node/stranger"},
        f"{ident}.IdentityService/GetLabelFilter": {},
        f"{ident}.IdentityService/SetLabelFilter": {"patterns": ["k8s:app"], "validateOnly": True},
        f"{ident}.IdentityService/GetIdentityStatus": {},
        f"{ident}.IdentityService/GetIdentity": identity,
        f"{ident}.IdentityService/ListIdentities": {"includeReserved": True},
        f"{ident}.IdentityService/WatchIdentities": {},
        f"{ident}.IpCacheService/Publish": {"node": "stranger", "entries": [entry]},
        f"{ident}.IpCacheService/ListIpCacheEntries": {},
        f"{ident}.IpCacheService/WatchIpCache": {},
        f"{ident}.IpCacheService/Withdraw": {"node": "stranger", "prefixes": [entry["prefix"]]},
        f"{policy}.PolicyService/ApplyPolicies": {"manifests": POLICY},
        f"{policy}.PolicyService/GetPolicy": {"key": KEY},
        f"{policy}.PolicyService/ListPolicies": {},
        f"{policy}.PolicyService/WaitEnforced": {"revision": 1, "timeout": "10s"},
        f"{policy}.PolicyService/ListEnforcement": {},
        f"{policy}.PolicyService/Explain": {
            "from": {"identity": client["identity"]},
            "to": {"identity": web["identity"]},
            "protocol": "PROTOCOL_TCP",
            "port": 80,
        },
        f"{policy}.PolicyService/DiffPolicies": {"deletes": [KEY]},
        f"{policy}.PolicyService/ListPolicyStatus": {"key": KEY},
        f"{policy}.PolicyService/Subscribe": {"hello": {"node": "stranger"}},
        f"{policy}.PolicyService/ForgetNode": {"node": "stranger"},
        f"{policy}.PolicyService/DeletePolicies": {"keys": [KEY]},
        f"{loader}.EndpointService/GetEndpoint": {"id": endpoint},
        f"{loader}.EndpointService/ListEndpoints": {},
        f"{loader}.EndpointService/WatchEndpoints": {},
        f"{loader}.EndpointService/UpdateEndpointLabels": {"id": endpoint, "labels": labels},
        f"{loader}.EndpointService/RegenerateEndpoint": {"id": endpoint},
        f"{loader}.DatapathService/GetStatus": {},
        f"{loader}.DatapathService/ListPolicyEntries": {"endpointId": endpoint},
        f"{loader}.DatapathService/ListIpCache": {},
        f"{loader}.DatapathService/ListConnections": {},
        f"{loader}.DatapathService/WaitApplied": {"timeout": "1s"},
        f"{loader}.DatapathService/ListMapEntries": {"map": "endpoint_dev"},
        f"{loader}.DatapathService/ResizeMap": {"map": "frag4", "maxEntries": 16384},
        f"{loader}.DatapathService/Reload": {},
        f"{loader}.DatapathService/CollectOrphans": {"dryRun": True},
        f"{loader}.ObserverService/GetFlows": {"last": 1},
        f"{loader}.EndpointService/DeleteEndpoint": {"id": endpoint},
    }


def _endpoint(number: int) -> Any:
    from fimbria.loader.v1 import loader_pb2

    return loader_pb2.GetEndpointRequest(id=number)


@pytest.mark.parametrize("package", PACKAGES)
def test_reflection_lists_every_method_of_the_protos(lab: Lab, package: str) -> None:
    target = _target(lab, package)
    methods = _methods(package)
    assert {method.rpartition("/")[0] for method in methods} <= listed(target, "--list-services")
    assert set(methods) <= listed(target, "--list-methods")


def test_every_method_answers(shop: Lab) -> None:
    lab = shop
    # Where no policy is enforced there are no verdicts to tell of.
    apply_manifests(lab.cluster, POLICY)
    lab.probe_many([(CLIENT, WEB, 80, "TCP")])
    known = {method: streams for package in PACKAGES for method, streams in _methods(package).items()}
    requests = _requests(lab)
    assert set(requests) == set(known)
    answers = {}
    for method, request in requests.items():
        target = _target(lab, method.split(".")[1])
        # What GetFlows was asked for ends; the watches do not.
        ask = first if known[method] else call
        answers[method] = ask(target, method, request)
    assert answers["fimbria.ipam.v1.AddressService/Allocate"]["node"] == "node-9"
    (finding,) = answers["fimbria.ipam.v1.AddressService/CheckAddresses"]["findings"][:1]
    assert finding["kind"] == "KIND_LEAKED" and finding["holder"] == "stranger"
    batch = answers["fimbria.ipam.v1.AddressService/AllocateBatch"]["addresses"]
    assert [address["owner"] for address in batch] == ["one", "two"]
    assert answers["fimbria.ipam.v1.AddressService/ReleaseBatch"] == {
        "released": 1,
        "absent": 1,
        "changed": 1,
    }
    updated = answers["fimbria.ipam.v1.PoolService/UpdatePool"]
    assert updated["excluded"] == ["10.9.0.0/28"] and len(updated["cidrs"]) == 2
    identity = "fimbria.identity.v1.IdentityService"
    assert answers[f"{identity}/WatchIdentities"]["events"]
    assert answers[f"{identity}/ReportUse"]["unknown"] == [65000]
    holders = {holder["name"]: holder for holder in answers[f"{identity}/ListHolders"]["holders"]}
    assert holders["node/stranger"]["identities"] == 1
    assert answers[f"{identity}/SetLabelFilter"]["filter"]["patterns"] == ["k8s:app"]
    assert answers[f"{identity}/GetLabelFilter"]["patterns"] != ["k8s:app"]
    spaces = {space["name"] for space in answers[f"{identity}/GetIdentityStatus"]["spaces"]}
    assert spaces == {"cluster", "prefixes"}
    assert answers["fimbria.policy.v1.PolicyService/Explain"]["allowed"] is True
    changes = answers["fimbria.policy.v1.PolicyService/DiffPolicies"]["changes"]
    assert {change["direction"] for change in changes} >= {"DIRECTION_INGRESS"}
    assert answers["fimbria.policy.v1.PolicyService/ListPolicyStatus"]["policies"][0]["enforced"] is True
    assert answers["fimbria.policy.v1.PolicyService/Subscribe"]["prefixes"]["whole"] is True
    assert {node["node"] for node in answers["fimbria.policy.v1.PolicyService/WaitEnforced"]["nodes"]} == {
        "node-1",
        "node-2",
    }
    assert answers["fimbria.loader.v1.ObserverService/GetFlows"]["flow"]["node"] == "node-1"
    assert answers["fimbria.loader.v1.DatapathService/GetStatus"]["endpoints"] == 1
    assert answers["fimbria.loader.v1.DatapathService/ResizeMap"]["maxEntries"] == "16384"
    assert answers["fimbria.loader.v1.DatapathService/CollectOrphans"] == {}

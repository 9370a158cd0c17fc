"""How users name policies: [KIND/]NAMESPACE/NAME."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from cli.errors import BadInput

if TYPE_CHECKING:
    from fimbria.policy.v1 import policy_pb2

    from cli.client import Cluster

KINDS = {
    "networkpolicy": "NetworkPolicy",
    "netpol": "NetworkPolicy",
    "ciliumnetworkpolicy": "CiliumNetworkPolicy",
    "cnp": "CiliumNetworkPolicy",
    "ciliumclusterwidenetworkpolicy": "CiliumClusterwideNetworkPolicy",
    "ccnp": "CiliumClusterwideNetworkPolicy",
    "adminnetworkpolicy": "AdminNetworkPolicy",
    "anp": "AdminNetworkPolicy",
    "baselineadminnetworkpolicy": "BaselineAdminNetworkPolicy",
    "banp": "BaselineAdminNetworkPolicy",
    "policy": "Policy",
    "ciliumcidrgroup": "CiliumCIDRGroup",
    "cidrgroup": "CiliumCIDRGroup",
    "ccg": "CiliumCIDRGroup",
}
# Kinds whose policies belong to no namespace.
CLUSTERWIDE = frozenset(
    (
        "CiliumClusterwideNetworkPolicy",
        "AdminNetworkPolicy",
        "BaselineAdminNetworkPolicy",
        "CiliumCIDRGroup",
    )
)


def title(policy: Mapping[str, Any]) -> str:
    """The same of a policy as JSON."""
    name = f"{policy['namespace']}/{policy['name']}" if policy["namespace"] else policy["name"]
    return f"{policy['kind']} {name}"


def find_keys(cluster: Cluster, ref: str) -> list[policy_pb2.PolicyKey]:
    """The keys that a reference stands for; none where the kind is not said and nothing is there."""
    from fimbria.policy.v1 import policy_pb2

    kind, namespace, name = parse_ref(ref)
    if kind:
        return [policy_pb2.PolicyKey(kind=kind, namespace=namespace, name=name)]
    found = [
        item.key
        for item in list_all(cluster, namespace)
        if (item.key.namespace, item.key.name) == (namespace, name)
    ]
    if len(found) > 1:
        raise ambiguous(ref, (key.kind for key in found))
    return found


def parse_ref(ref: str) -> tuple[str, str, str]:
    """(kind or nothing, namespace or nothing, name). BadInput for what is no name."""
    first, _, rest = ref.partition("/")
    kind = KINDS.get(first.lower(), "") if rest else ""
    namespace, slash, name = (rest if kind else ref).partition("/")
    if not slash:
        namespace, name = "", namespace
    if not name or "/" in name:
        raise BadInput(f"policy {ref!r} is not valid: expected [KIND/]NAMESPACE/NAME")
    if namespace and kind in CLUSTERWIDE:
        raise BadInput(f"policy {ref!r} is not valid: a {kind} has no namespace, expected KIND/NAME")
    return kind, namespace, name


def ambiguous(ref: str, kinds: Iterable[str]) -> BadInput:
    return BadInput(
        f"policy {ref!r} is ambiguous: there is one of each kind {', '.join(kinds)}",
        hint="say KIND/NS/NAME",
    )


def list_all(cluster: Cluster, namespace: str = "") -> list[policy_pb2.Policy]:
    """Every policy, or those of a namespace."""
    from fimbria.policy.v1 import policy_pb2

    from cli.client import pages

    request = policy_pb2.ListPoliciesRequest(namespace=namespace)
    return list(pages(cluster.policies.ListPolicies, request, "policies"))

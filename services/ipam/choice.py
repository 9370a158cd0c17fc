"""Which pool a workload's addresses come from.

In mode multi-pool the first of these that says one: the request, the pod's annotations, its namespace's
annotations, the selectors of the pools, the node's own pool. The other modes have one pool for each node.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from services.ipam import problems
from services.ipam.model import Mode, PoolSelectors, Workload
from services.ipam.selectors import selects

# The second is understood so that manifests written for Cilium's pools need no change.
ANNOTATIONS: Final = ("fimbria.io/ip-pool", "ipam.cilium.io/ip-pool")
# Labels that Kubernetes and Cilium give to every namespace and pod; selectors may name them.
NAMESPACE_NAME: Final = "kubernetes.io/metadata.name"
POD_NAMESPACE: Final = "io.kubernetes.pod.namespace"
POD_NAME: Final = "io.kubernetes.pod.name"
_POOL_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


def choose(
    mode: Mode,
    node_pool: str,
    requested: str,
    workload: Workload | None,
    selectors: Sequence[PoolSelectors],
) -> str:
    """The name of the pool for an allocation on a node whose own pool is `node_pool`.

    Whether a pool of that name exists is for the caller to find out. `requested` is empty when the request
    names none. Raises FailedPrecondition (POOL_NOT_ALLOWED, POOL_AMBIGUOUS), InvalidArgument
    (POOL_NAME_INVALID).
    """
    if mode != "multi-pool":
        if requested and requested != node_pool:
            raise problems.pool_not_allowed(requested, node_pool, mode)
        return node_pool
    if requested:
        return _name(requested, "pool")
    if workload is None:
        return node_pool
    return (
        _annotated(workload.annotations, "workload.annotations")
        or _annotated(workload.namespace_annotations, "workload.namespace_annotations")
        or _selected(workload, selectors)
        or node_pool
    )


def _annotated(annotations: Mapping[str, str], field: str) -> str:
    for key in ANNOTATIONS:
        if name := annotations.get(key, "").strip():
            return _name(name, f'{field}["{key}"]')
    return ""


def _selected(workload: Workload, selectors: Sequence[PoolSelectors]) -> str:
    pod = {POD_NAMESPACE: workload.namespace, POD_NAME: workload.name, **workload.labels}
    namespace = {NAMESPACE_NAME: workload.namespace, **workload.namespace_labels}
    found = sorted(one.pool for one in selectors if _matches(one, pod, namespace))
    if len(found) > 1:
        raise problems.pool_ambiguous(workload.namespace, workload.name, found)
    return found[0] if found else ""


def _matches(one: PoolSelectors, pod: Mapping[str, str], namespace: Mapping[str, str]) -> bool:
    """Whether all of the selectors that the pool has select; a pool without any is nobody's."""
    if one.pod is None and one.namespace is None:
        return False
    return (one.pod is None or selects(one.pod, pod)) and (
        one.namespace is None or selects(one.namespace, namespace)
    )


def _name(name: str, field: str) -> str:
    if not _POOL_NAME.fullmatch(name):
        raise problems.invalid(
            field,
            f"{name!r} is not the name of a pool; expected a DNS label of up to 63 characters",
            reason="POOL_NAME_INVALID",
            value=name,
        )
    return name

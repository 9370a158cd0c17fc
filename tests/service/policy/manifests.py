# SPDX-License-Identifier: Apache-2.0
"""Manifests that several tests apply."""

from __future__ import annotations

import json
from typing import Any


def network_policy(namespace: str, name: str, spec: dict[str, Any]) -> str:
    """A Kubernetes NetworkPolicy as JSON."""
    return json.dumps(
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": name, "namespace": namespace},
            "spec": spec,
        }
    )


def allow_client(namespace: str, port: int = 80) -> str:
    """A CiliumNetworkPolicy "web": app=client may reach app=web on a TCP port."""
    return f"""
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata:
  name: web
  namespace: {namespace}
spec:
  endpointSelector:
    matchLabels:
      app: web
  ingress:
  - fromEndpoints:
    - matchLabels:
        app: client
    toPorts:
    - ports:
      - port: "{port}"
        protocol: TCP
"""


def cidr_group(name: str, *cidrs: str) -> str:
    """A CiliumCIDRGroup."""
    return json.dumps(
        {
            "apiVersion": "cilium.io/v2",
            "kind": "CiliumCIDRGroup",
            "metadata": {"name": name},
            "spec": {"externalCIDRs": cidrs},
        }
    )


def to_cidrs(namespace: str, name: str, *rules: dict[str, Any], app: str = "web") -> str:
    """A CiliumNetworkPolicy about app=APP with these egress rules."""
    return json.dumps(
        {
            "apiVersion": "cilium.io/v2",
            "kind": "CiliumNetworkPolicy",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"endpointSelector": {"matchLabels": {"app": app}}, "egress": rules},
        }
    )


def ip_block(namespace: str, name: str, cidr: str, *excepts: str) -> str:
    """A NetworkPolicy that lets every pod be reached from a block of addresses."""
    block = {"cidr": cidr, "except": list(excepts)} if excepts else {"cidr": cidr}
    return network_policy(namespace, name, {"podSelector": {}, "ingress": [{"from": [{"ipBlock": block}]}]})

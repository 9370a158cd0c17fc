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

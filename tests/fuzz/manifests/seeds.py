# SPDX-License-Identifier: Apache-2.0
"""Manifests to begin with: the published cases, and one or more of every kind that use every field."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml

_CASES = Path(__file__).parents[2] / "conformance" / "netpol_cases.json"
_ADDRESS = re.compile(r"\{\{ip:[^}]*\}\}")

_HAND_WRITTEN = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: everything
  namespace: shop
  labels: {team: shop}
  annotations: {fimbria.io/audit: "true", example.org/note: any text}
spec:
  podSelector:
    matchLabels: {app: web}
    matchExpressions: [{key: tier, operator: In, values: [a, b]}, {key: x, operator: Exists}]
  policyTypes: [Ingress, Egress]
  ingress:
  - from:
    - podSelector: {matchLabels: {app: client}}
      namespaceSelector: {matchExpressions: [{key: team, operator: NotIn, values: [z]}]}
    - ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}
    ports: [{protocol: TCP, port: 80, endPort: 90}, {port: http}, {protocol: UDP}]
  egress:
  - to: [{ipBlock: {cidr: "fd00::/8"}}, {namespaceSelector: {}}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: everything, namespace: shop}
spec:
  endpointSelector: {matchLabels: {"k8s:app": web, io.cilium.k8s.policy.serviceaccount: robot}}
  description: what it is for
  labels: [{key: a, value: b, source: c}]
  enableDefaultDeny: {ingress: true, egress: false}
  ingress:
  - fromEndpoints:
    - matchLabels: {"k8s:io.kubernetes.pod.namespace": other, "any:app": x}
      matchExpressions: [{key: reserved:host, operator: DoesNotExist}]
    toPorts: [{ports: [{port: "80", endPort: 90, protocol: TCP}, {port: http, protocol: ANY}, {port: "0"}]}]
  - fromCIDRSet: [{cidr: 10.0.0.0/8, except: [10.1.0.0/16]}, {cidrGroupRef: offices, except: [10.2.0.0/16]}]
    icmps: [{fields: [{type: 8, family: IPv4}, {type: EchoRequest, family: IPv6}]}]
  ingressDeny:
  - fromEntities: [world-ipv4, kube-apiserver, none]
  egress:
  - toCIDR: [192.0.2.1, "2001:db8::/32"]
  - toEntities: [all]
  egressDeny:
  - toEndpoints: [{}]
---
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: everything}
specs:
- nodeSelector: {matchLabels: {role: edge}}
  ingress: [{fromEntities: [cluster], toPorts: [{ports: [{port: "22", protocol: TCP}]}]}]
- endpointSelector: {}
  egress: [{toEndpoints: [{matchLabels: {io.cilium.k8s.namespace.labels.team: x}}]}]
---
apiVersion: policy.networking.k8s.io/v1alpha1
kind: AdminNetworkPolicy
metadata: {name: everything, annotations: {fimbria.io/audit: "false"}}
spec:
  priority: 10
  subject: {pods: {namespaceSelector: {matchLabels: {team: x}}, podSelector: {matchLabels: {app: a}}}}
  ingress:
  - name: first
    action: Pass
    from: [{namespaces: {matchLabels: {team: y}}}, {pods: {namespaceSelector: {}, podSelector: {}}}]
    ports: [{portNumber: {protocol: UDP, port: 53}}, {portRange: {protocol: TCP, start: 1, end: 9}}]
  egress:
  - {name: second, action: Deny, to: [{networks: [10.0.0.0/8, "fd00::/8"]}]}
  - {action: Allow, to: [{namespaces: {}}], ports: [{namedPort: http}]}
---
apiVersion: policy.networking.k8s.io/v1alpha1
kind: BaselineAdminNetworkPolicy
metadata: {name: default}
spec:
  subject: {namespaces: {}}
  ingress: [{name: last, action: Deny, from: [{namespaces: {}}]}]
---
apiVersion: cilium.io/v2
kind: CiliumCIDRGroup
metadata: {name: offices, labels: {where: here}}
spec: {externalCIDRs: [10.0.0.0/8, 192.0.2.1, "::/0"]}
---
apiVersion: fimbria.io/v1
kind: Policy
metadata: {name: everything, namespace: shop}
spec:
  tier: admin
  priority: 7
  audit: true
  pods: {matchLabels: {app: web}, matchExpressions: [{key: x, operator: NotIn, values: [y]}]}
  rules:
  - direction: ingress
    action: pass
    peers:
    - pods: {matchLabels: {"k8s:app": client}}
    - entity: world
    - cidr: {cidr: 10.0.0.0/8, except: [10.1.0.0/16], byAddress: true}
    - cidrGroup: offices
    ports:
    - {protocol: ANY, port: "80", endPort: 90}
    - {protocol: ICMPv6, port: EchoRequest}
    - {protocol: UDP, port: dns}
  - {direction: egress, action: deny}
---
apiVersion: fimbria.io/v1
kind: Policy
metadata: {name: nodes}
spec:
  tier: TIER_NORMAL
  nodes: {}
  defaultDeny: [ingress, DIRECTION_EGRESS]
  rules: [{direction: DIRECTION_INGRESS, action: ACTION_ALLOW, ports: [{protocol: TCP, port: "22"}]}]
"""


@cache
def seeds() -> tuple[dict[str, Any], ...]:
    """Manifests as values; nobody may change them."""
    text = _CASES.read_text(encoding="utf-8").replace("{{podcidr}}", "10.0.0.0/16")
    cases = json.loads(_ADDRESS.sub("10.0.1.5", text))
    found = [manifest for case in cases for manifest in case["policies"]]
    for case in cases:
        for step in case.get("steps", []):
            found.extend(action["policy"] for action in step["actions"] if "policy" in action)
    return (*hand_written(), *found)


@cache
def hand_written() -> tuple[dict[str, Any], ...]:
    return tuple(yaml.safe_load_all(_HAND_WRITTEN))

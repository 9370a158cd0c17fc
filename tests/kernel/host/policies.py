"""Policies for node-1."""

from __future__ import annotations

HEAD = """
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: NAME}
spec:
  nodeSelector: {matchLabels: {kubernetes.io/hostname: node-1}}
"""

# One port is open to everybody, all to other nodes.
INGRESS = (
    HEAD.replace("NAME", "node-ingress")
    + """
  ingress:
  - toPorts: [{ports: [{port: "8443", protocol: TCP}, {port: "5300", protocol: UDP}]}]
  - fromEntities: [remote-node]
"""
)

# It may send to one port of the world, and to whatever is of the cluster.
EGRESS = (
    HEAD.replace("NAME", "node-egress")
    + """
  egress:
  - toEntities: [world]
    toPorts: [{ports: [{port: "8443", protocol: TCP}, {port: "5300", protocol: UDP}]}]
  - toEntities: [cluster]
"""
)

# Pods with a label may use one more port.
FROM_NEAR = (
    HEAD.replace("NAME", "node-from-near")
    + """
  ingress:
  - fromEndpoints: [{matchLabels: {app: near}}]
    toPorts: [{ports: [{port: "9000", protocol: TCP}]}]
"""
)

# Somebody outside may use one more port, by his addresses.
FROM_OUTSIDE = (
    HEAD.replace("NAME", "node-from-outside")
    + """
  ingress:
  - fromCIDRSet: [{cidr: 172.31.7.0/24}, {cidr: "2001:db8::7:0/112"}]
    toPorts: [{ports: [{port: "9000", protocol: TCP}]}]
"""
)

DENY_FAR = (
    HEAD.replace("NAME", "node-deny-far")
    + """
  ingressDeny:
  - fromEndpoints: [{matchLabels: {app: far}}]
"""
)

AUDITED = INGRESS.replace("name: node-ingress", "name: node-ingress, annotations: {fimbria.io/audit: 'true'}")
BY_ZONE = INGRESS.replace("kubernetes.io/hostname: node-1", "zone: a").replace("node-ingress", "by-zone")
OTHER_ZONE = BY_ZONE.replace("zone: a", "zone: b")

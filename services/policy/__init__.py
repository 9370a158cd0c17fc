# SPDX-License-Identifier: Apache-2.0
"""The policy service: rules in, policy-map entries out.

Manifests become a rule model (`manifest`, `kubernetes`, `cilium` -> `rules`), the model is resolved against
the live set of identities into entries per subject (`engine`), and the entries travel to the nodes as a
snapshot followed by deltas (`distribution`, `api`). A *subject* is a pair of (identity, declared named
ports): all pods of a node that agree in both share one set of entries.

Everything up to the entries is pure: events in, deltas out, no clock, no I/O. What was traded away:
resolution keeps every entry of every watched subject in memory, because a delta that is computed from kept
state costs what changed and not what exists.
"""

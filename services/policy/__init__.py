# SPDX-License-Identifier: Apache-2.0
"""The policy service: rules in, policy-map entries out.

Manifests become a rule model (`manifest`, `kubernetes`, `cilium` -> `rules`), the model is resolved against
the live set of identities into entries per subject (`engine`), and the entries travel to the nodes as a
snapshot followed by deltas (`distribution`, `api`). A *subject* is a pair of (identity, declared named
ports): all pods of a node that agree in both share one set of entries.

Policies are bound to the CIDR groups that they name, and each prefix that they name has a number, the same
in the whole cluster (`in_force`, `prefix_numbers`): it is a peer like any identity. Where a prefix comes or
goes, entries for it are there before it takes effect and until it has ceased to.

Several processes may share one store (`replicas`). All of them see every policy by the feed and every
identity; what nodes say to one of them, the others read from the store.

Everything up to the entries is pure: events in, deltas out, no clock, no I/O. What was traded away: the
engine keeps for every watched subject which rules speak for which keys, and for every selector whom it
matches, because a delta that is computed from kept state costs what changed and not what exists. Whom a rule
is about is a bitmap that all subjects share, so that an entry itself takes no room.
"""

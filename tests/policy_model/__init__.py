# SPDX-License-Identifier: Apache-2.0
"""A second opinion on network policy.

`model` answers by reading manifests the way their API documents put it: for one connection it goes through
every policy and every rule. It knows no identities, no caches, no map entries and nothing of
services/policy. `harness` runs the engine as the services would, and keeps a replica of the kernel's maps
from nothing but the engine's deltas. `generators` invents clusters, policies and changes. The tests let
all of them judge the same connections.
"""

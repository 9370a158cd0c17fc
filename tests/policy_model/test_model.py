# SPDX-License-Identifier: Apache-2.0
"""The model itself gives the verdicts that others published."""

from __future__ import annotations

from typing import Any

import pytest

from tests.policy_model.cases import CASES, Addresses, act, cluster_of, connection_of, rounds
from tests.policy_model.model import Model


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_model_gives_the_published_verdicts(case: dict[str, Any]) -> None:
    addresses = Addresses()
    cluster = cluster_of(case, addresses)
    model = Model(cluster)
    documents: dict[tuple[str, str, str], dict[str, Any]] = {}
    wrong = []
    for where, actions, probes in rounds(case):
        for action in actions:
            if "policy" in action:
                document = addresses.fill(action["policy"])
                head = document["metadata"]
                documents[document["kind"], head.get("namespace", ""), head["name"]] = document
            elif action["action"] == "delete_policy":
                for key in [k for k in documents if k[1:] == (action["namespace"], action["name"])]:
                    del documents[key]
            else:
                act(cluster, action, addresses)
        model.read(documents.values())
        wrong += [
            f"{where}: {connection_of(probe)}: expected {probe['expect']}"
            for probe in probes
            if model.allowed(connection_of(probe)) != (probe["expect"] == "allow")
        ]
    assert wrong == []

"""Every case, published or our own, as traffic between real pods, and the policy service's word about it."""

from __future__ import annotations

import pytest

from tests.conformance import probing
from tests.conformance.cases import Case, in_order, lab_labels, own, published
from tests.conformance.conftest import Labs
from tests.conformance.probing import Tally

pytestmark = pytest.mark.cluster

CASES = in_order([*own(), *published()])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_every_probe_comes_out_as_it_should(labs: Labs, case: Case, tally: Tally) -> None:
    cluster = labs.cluster(lab_labels(case))
    cluster.settle(case)
    tally.cases += 1
    wrong = []
    for number, stage in enumerate(case.stages):
        cluster.act(stage.actions)
        wrong += [f"stage {number}: {line}" for line in probing.run(cluster, case, stage.probes, tally)]
    assert not wrong, f"{case.id} ({case.description}):\n" + "\n".join(wrong)


def test_the_cases_are_complete() -> None:
    assert len(published()) >= 90
    assert len({case.id for case in CASES}) == len(CASES)

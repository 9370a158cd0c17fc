"""Shapes as the core counts them and as the datapath's binding computes them are the same."""

from __future__ import annotations

from hypothesis import given

from services.loader.bpf.layout import PolicyKey, PolicyValue, direction_shape
from services.loader.kernel import subject_row
from services.loader.policy.entries import EGRESS, INGRESS
from services.loader.policy.plan import SubjectState, plan
from tests.unit.loader.test_policy_map import states


@given(states)
def test_a_row_has_the_shape_of_its_entries(state: SubjectState) -> None:
    todo = plan(None, state, fresh_instance=3, fresh_epoch=4)
    assert todo is not None
    row = subject_row(todo.target)
    entries = [
        (
            PolicyKey(3, key.identity, key.direction, key.protocol, key.port, key.prefix_length, key.space),
            PolicyValue(value.deny, passes=value.passes, order=value.order),
        )
        for key, value in state.entries.items()
    ]
    assert row.ingress == direction_shape(
        entries, INGRESS, enforced=state.ingress.enforced, audit_enforced=state.ingress.audit_enforced
    )
    assert row.egress == direction_shape(
        entries, EGRESS, enforced=state.egress.enforced, audit_enforced=state.egress.audit_enforced
    )

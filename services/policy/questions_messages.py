# SPDX-License-Identifier: Apache-2.0
"""The answers to questions about policies as messages of fimbria.policy.v1."""

from __future__ import annotations

from collections.abc import Mapping

from fimbria.policy.v1 import policy_pb2 as pb
from google.protobuf.duration_pb2 import Duration

from services.policy.convert import (
    direction_message,
    entry_message,
    key_message,
    rule_message,
    tier_message,
    timestamp,
)
from services.policy.diff import Change
from services.policy.diff_world import PROVISIONAL
from services.policy.distribution import RuleName
from services.policy.explain import DecidingRule, Verdict
from services.policy.rules import PolicyRef
from services.policy.status import PolicyStatus

Sources = Mapping[PolicyRef, str]


def _rule(found: DecidingRule, sources: Sources) -> pb.RuleRef:
    rule = found.rule
    name = RuleName(found.ref, rule.path, rule.deny, rule.passes, sources.get(found.ref, ""), found.line)
    return rule_message(_cookie(found.cookie), name)


def verdict_message(verdict: Verdict, sources: Sources) -> pb.Verdict:
    judged = verdict.judgement
    entry = None
    if judged is not None and judged.key is not None and judged.value is not None:
        entry = entry_message(judged.key, judged.value._replace(cookie=_cookie(judged.value.cookie)))
    return pb.Verdict(
        allowed=verdict.allowed,
        enforced=verdict.enforced,
        rule=_rule(verdict.rule, sources) if verdict.rule is not None else None,
        enforced_by=map(key_message, verdict.enforced_by),
        reason=verdict.reason,
        entry=entry,
        contributing=[_rule(found, sources) for found in verdict.covering],
        audited=verdict.audited,
        audit_rule=_rule(verdict.audit_rule, sources) if verdict.audit_rule is not None else None,
        audited_by=map(key_message, verdict.audited_by),
    )


def change_message(change: Change, labels: tuple[str, ...]) -> pb.VerdictChange:
    """Without the number of nodes."""
    stretch = change.stretch
    before, after = stretch.before.allowed, stretch.after.allowed
    if change.audit_only:
        # What would pass if the policies in audit mode were in force: the verdict itself stays.
        before, after = before and not stretch.before.audited, after and not stretch.after.audited
    return pb.VerdictChange(
        subject=change.subject.identity,
        subject_labels=labels,
        direction=direction_message(change.direction),
        peers=[named.number for named in change.peers],
        peer_names=[named.name for named in change.peers],
        every_other_peer=change.every_other_peer,
        protocol=stretch.protocol,
        first_port=stretch.first,
        last_port=stretch.last,
        allowed_before=before,
        allowed_after=after,
        audit_only=change.audit_only,
    )


def status_message(status: PolicyStatus) -> pb.PolicyStatus:
    policy = status.stored.bound.policy
    return pb.PolicyStatus(
        key=key_message(status.stored.ref),
        revision=status.revision,
        enforced=status.enforced,
        update_time=timestamp(status.stored.updated_ns),
        audit=policy.audit,
        tier=tier_message(policy.tier),
        subjects=[
            pb.SubjectStatus(
                identity=subject.identity,
                labels=subject.labels,
                nodes=[
                    pb.SubjectNodeStatus(
                        node=node.state.name,
                        acknowledged=pb.Revision(
                            policy=node.state.acknowledged.policy, identity=node.state.acknowledged.identity
                        ),
                        enforced=not node.late,
                        late=node.late,
                        late_for=_duration(node.late_ns) if node.late else None,
                    )
                    for node in subject.nodes
                ],
            )
            for subject in status.subjects
        ],
        notes=status.notes,
    )


def _duration(nanoseconds: int) -> Duration:
    return Duration(seconds=nanoseconds // 10**9, nanos=nanoseconds % 10**9)


def _cookie(cookie: int) -> int:
    return cookie if cookie < PROVISIONAL else 0

# SPDX-License-Identifier: Apache-2.0
"""What is proposed turns the verdict: proposals are carried out and the connection is judged again."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from services.policy.explain import End, Verdict, explain
from services.policy.remedies import remedies
from services.policy.resolve import BoundPolicy
from services.policy.rules import Direction, Policy, PolicyRef, Protocol, Rule, RuleSpec, Tier
from services.policy.selector import EVERYTHING
from tests.unit.policy import test_diff

SENDER = End(301, test_diff.IDENTITIES[301])
RECEIVER = End(300, test_diff.IDENTITIES[300], test_diff.PORTS_OF[300])


def judged(policies: list[BoundPolicy], port: int) -> tuple[Verdict, Verdict]:
    return explain(policies, SENDER, RECEIVER, Protocol.TCP, port)


def numbered(policies: list[Policy]) -> list[BoundPolicy]:
    found, last = [], 0
    for policy in policies:
        paths = [rule.path for rule in policy.rules()]
        found.append(BoundPolicy(policy, {path: last + n for n, path in enumerate(paths, 1)}))
        last += len(paths)
    return found


def without(policies: list[Policy], named: str) -> list[Policy]:
    """The policies without the rules that a text names."""
    return [
        replace(
            policy,
            specs=tuple(
                replace(spec, rules=tuple(r for r in spec.rules if f"{policy.ref} {r.path}" not in named))
                for spec in policy.specs
            ),
        )
        for policy in policies
    ]


def one_more(direction: Direction, *, deny: bool, isolate: bool = False) -> Policy:
    """A policy of the tier NORMAL for everybody, with one rule, or one that isolates."""
    rule = Rule(direction, deny, (EVERYTHING,), (), "added")
    default = (isolate and direction is Direction.INGRESS, isolate and direction is Direction.EGRESS)
    spec = RuleSpec(EVERYTHING, () if isolate else (rule,), default, "spec")
    return Policy(PolicyRef("Policy", "", "added"), (spec,))


def carried_out(policies: list[Policy], text: str, direction: Direction) -> list[Policy] | None:
    """The policies after a proposal; None for one that is about other tiers."""
    head, _, more = text.partition(" no longer ")
    changed = policies
    if more and not head.startswith(("this policy", "these policies")):
        changed = without(policies, head)
        if "and a rule that allows it" in more:
            changed = [*changed, one_more(direction, deny=False)]
        return changed
    if text.startswith("a rule that allows it"):
        return [*policies, one_more(direction, deny=False)]
    if text.startswith("a rule that denies it"):
        return [*policies, one_more(direction, deny=True)]
    if text.startswith("a policy that selects"):
        return [*policies, one_more(direction, deny=False, isolate=True)]
    if more:
        return [
            replace(p, specs=tuple(replace(s, default_deny=(False, False)) for s in p.specs))
            if p.tier is Tier.NORMAL
            else p
            for p in policies
        ]
    return None


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_every_proposal_turns_the_verdict(data: st.DataObject) -> None:
    names = ("a", "b", "c")[: data.draw(st.integers(1, 3))]
    policies = [data.draw(test_diff.policies(name)) for name in names]
    port = data.draw(st.sampled_from((80, 81, 8080)))
    egress, ingress = judged(numbered(policies), port)
    denying = [verdict for verdict in (egress, ingress) if not verdict.allowed]
    if len(denying) == 2:
        told = remedies(egress, ingress, SENDER, RECEIVER, Protocol.TCP, port)
        assert told[0].startswith("both ends deny it") and len(told) > 2
        return
    for text in remedies(egress, ingress, SENDER, RECEIVER, Protocol.TCP, port):
        # Whose end a proposal is about is told, or that of the rules that it names.
        ways = [way for way in Direction if way.name.lower() in text] or list(Direction)
        if denying:
            ways = [Direction.EGRESS if denying[0] is egress else Direction.INGRESS]
        results = []
        for way in ways:
            after = carried_out(policies, text, way)
            if after is not None:
                results.append(all(verdict.allowed for verdict in judged(numbered(after), port)))
        assert not results or (not (egress.allowed and ingress.allowed)) in results, (text, policies)

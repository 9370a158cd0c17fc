# SPDX-License-Identifier: Apache-2.0
"""What would have to change for a connection to get the other verdict, in words.

Each proposal is tried on the rules that cover the connection before it is made.
"""

from __future__ import annotations

from collections.abc import Sequence

from services.policy.diff_ports import Clause, decide
from services.policy.explain import SIDES, DecidingRule, End, Verdict
from services.policy.rules import Direction, Protocol, Tier

_TIERS = (Tier.ADMIN, Tier.NORMAL, Tier.BASELINE)


def remedies(
    egress: Verdict, ingress: Verdict, sender: End, receiver: End, protocol: int, port: int
) -> tuple[str, ...]:
    """Changes that turn the verdict on the connection into the other one, each by itself enough unless it
    says otherwise.
    """
    ends = (
        _Side(egress, Direction.EGRESS, sender, receiver, protocol, port),
        _Side(ingress, Direction.INGRESS, receiver, sender, protocol, port),
    )
    denying = [end for end in ends if not end.verdict.allowed]
    if not denying:
        return tuple(text for end in ends for text in end.to_deny())
    if len(denying) == 1:
        return tuple(denying[0].to_allow())
    found = ["both ends deny it: one change at the sender and one at the receiver are needed"]
    return tuple(
        found + [f"at the {SIDES[end.direction]}: {text}" for end in ends for text in end.to_allow()]
    )


class _Side:
    """One end, and the rules that cover the connection there."""

    def __init__(
        self, verdict: Verdict, direction: Direction, subject: End, peer: End, protocol: int, port: int
    ) -> None:
        self.verdict = verdict
        self.direction = direction
        self._side, self._way = SIDES[direction], direction.name.lower()
        self._subject, self._peer = subject, peer
        self._rules = [found for found in verdict.covering if not found.audit]
        self._what = f"{'to' if direction is Direction.EGRESS else 'from'} {peer} on {_port(protocol, port)}"

    def to_allow(self) -> list[str]:
        """For a denied connection."""
        left, taken = self._without(self._rules, denying=True)
        found = []
        allowing = (
            f"a rule that allows it in the {self._way} of a policy that selects the {self._side}"
            f"{self._example()}: {self._what}"
        )
        if taken and self._passes(left):
            found.append(
                f"{_listed(taken)} no longer denies it"
                if len(taken) == 1
                else f"{_listed(taken)} no longer deny it, none of them"
            )
        elif taken and self._passes([*left, _clause(Tier.NORMAL, deny=False)]):
            words = "denies" if len(taken) == 1 else "deny"
            found.append(f"{_listed(taken)} no longer {words} it, and {allowing}")
        if self._passes([*self._clauses(), _clause(Tier.NORMAL, deny=False)]):
            found.append(allowing)
        elif taken:
            before = f" before {taken[0]}" if taken[0].tier is Tier.ADMIN else ""
            found.append(
                f"a rule of the tier ADMIN, as an AdminNetworkPolicy has them, that allows it{before}"
            )
        if not taken and self.verdict.enforced_by and self._passes(left, enforced=False):
            listed = _and(list(map(str, self.verdict.enforced_by)))
            those = (
                "these policies go or are" if len(self.verdict.enforced_by) > 1 else "this policy goes or is"
            )
            found.append(f"{those} no longer default deny for {self._way}: {listed}")
        return found

    def to_deny(self) -> list[str]:
        """For an allowed connection."""
        if self.verdict.settled:
            return []
        found = []
        left, taken = self._without(self._rules, denying=False)
        if taken and not self._passes(left):
            words = "allows" if len(taken) == 1 else "allow"
            why = "the default of the " + self._side if self.verdict.enforced else "what comes after it"
            found.append(f"{_listed(taken)} no longer {words} it: then {why} denies it")
        clauses = self._clauses()
        denying = f"in the {self._way} of a policy that selects the {self._side}: {self._what}"
        if not self._passes([*clauses, _clause(Tier.NORMAL, deny=True)]):
            found.append(f"a rule that denies it {denying}")
            if not self.verdict.enforced and not self._passes(clauses, enforced=True):
                found.append(
                    f"a policy that selects the {self._side} with default deny for {self._way}, and does not "
                    f"allow it {self._what}"
                )
        else:
            rule = self.verdict.rule
            before = f" before {rule}" if rule is not None else ""
            found.append(f"a rule of the tier ADMIN that denies it{before}, {denying}")
        return found

    def _example(self) -> str:
        if self.verdict.enforced_by:
            return f", for example in {self.verdict.enforced_by[0]}"
        return ""

    def _clauses(self) -> list[Clause]:
        return list(map(_of, self._rules))

    def _passes(self, rules: Sequence[Clause | DecidingRule], *, enforced: bool | None = None) -> bool:
        clauses = [_of(rule) if isinstance(rule, DecidingRule) else rule for rule in rules]
        return decide(clauses, self.verdict.enforced if enforced is None else enforced)

    def _without(
        self, rules: list[DecidingRule], *, denying: bool
    ) -> tuple[list[Clause | DecidingRule], list[DecidingRule]]:
        """The rules without those that give the present verdict, one after the other; and these."""
        left: list[DecidingRule] = list(rules)
        taken: list[DecidingRule] = []
        while self._passes(left) is not denying:
            deciding = _deciding(left, enforced=self.verdict.enforced)
            if deciding is None:
                break
            left.remove(deciding)
            taken.append(deciding)
        return list(left), taken


def _deciding(rules: Sequence[DecidingRule], *, enforced: bool) -> DecidingRule | None:
    for tier in _TIERS:
        first = min((rule for rule in rules if rule.tier is tier), key=lambda rule: rule.rank, default=None)
        if first is not None and not first.rule.passes:
            return first
        if tier is Tier.NORMAL and enforced:
            return None
    return None


def _of(found: DecidingRule) -> Clause:
    rule = found.rule
    return Clause(found.tier, False, rule.deny, rule.passes, rule.order, None)


def _clause(tier: Tier, *, deny: bool) -> Clause:
    return Clause(tier, False, deny, False, 0, None)


def _listed(rules: Sequence[DecidingRule]) -> str:
    return _and([str(rule) for rule in rules])


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _port(protocol: int, port: int) -> str:
    name = Protocol(protocol).name
    if protocol in (Protocol.ICMP, Protocol.ICMPV6):
        return f"{'ICMPv6' if protocol == Protocol.ICMPV6 else 'ICMP'} type {port}"
    return f"port {port}/{name}"

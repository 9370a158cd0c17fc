"""An entry of a subject's policy, as plain data. No I/O."""

from __future__ import annotations

from dataclasses import dataclass

INGRESS = 0
EGRESS = 1


@dataclass(frozen=True, slots=True, order=True)
class EntryKey:
    """A policy-map key without its instance.

    ``direction`` is INGRESS or EGRESS; ``identity`` and ``protocol`` 0 mean any; ``port`` counts only in
    its ``prefix_length`` leading bits.
    """

    direction: int
    identity: int
    protocol: int
    port: int
    prefix_length: int

    def covers(self, direction: int, identity: int, protocol: int, port: int) -> bool:
        """Whether the entry speaks of such a packet."""
        if self.direction != direction or self.identity not in (0, identity):
            return False
        if self.protocol not in (0, protocol):
            return False
        shift = 16 - self.prefix_length
        return self.port >> shift == port >> shift


@dataclass(frozen=True, slots=True)
class EntryValue:
    """What an entry says: deny or allow, and the number of the rule that it comes from."""

    deny: bool
    cookie: int = 0

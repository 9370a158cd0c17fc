"""An entry of a subject's policy, as plain data. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

INGRESS = 0
EGRESS = 1

# The tiers, as the datapath's keys have them.
NORMAL: Final = 0
ADMIN: Final = 1
BASELINE: Final = 2

# A space is a tier with these bits: each is searched by itself.
TIER_MASK: Final = 3
TIER_NAMES: Final = {ADMIN: "admin", NORMAL: "normal", BASELINE: "baseline"}
# The identity is the number of the longest prefix in use by address that holds the peer's address.
BY_ADDRESS: Final = 4
# Of policies in audit mode.
AUDIT: Final = 8


@dataclass(frozen=True, slots=True, order=True)
class EntryKey:
    """A policy-map key without its instance.

    ``direction`` is INGRESS or EGRESS; ``identity`` and ``protocol`` 0 mean any; ``port`` counts only in
    its ``prefix_length`` leading bits; ``space`` is a tier, with BY_ADDRESS and AUDIT where they hold.
    """

    direction: int
    identity: int
    protocol: int
    port: int
    prefix_length: int
    space: int = 0

    @property
    def tier(self) -> int:
        """NORMAL, ADMIN or BASELINE."""
        return self.space & TIER_MASK

    @property
    def audit(self) -> bool:
        """It is of policies in audit mode: no verdict depends on it."""
        return bool(self.space & AUDIT)

    @property
    def by_address(self) -> bool:
        """Its identity is the number of a prefix, whoever has an address in it."""
        return bool(self.space & BY_ADDRESS)

    def covers(self, direction: int, identity: int, protocol: int, port: int) -> bool:
        """Whether the entry speaks of such a packet; for one by address ``identity`` is the prefix's
        number.
        """
        if self.direction != direction or self.identity not in (0, identity):
            return False
        if self.protocol not in (0, protocol):
            return False
        shift = 16 - self.prefix_length
        return self.port >> shift == port >> shift


@dataclass(frozen=True, slots=True)
class EntryValue:
    """What an entry says: deny or allow, and the number of the rule that it comes from.

    ``passes``: it does neither, its tier leaves the packet to the next. ``order`` decides within the tiers
    ADMIN and BASELINE, the lowest first.
    """

    deny: bool
    cookie: int = 0
    passes: bool = False
    order: int = 0

    def says_the_same(self, other: EntryValue) -> bool:
        """Whether no verdict depends on which of the two is there."""
        return (self.deny, self.passes, self.order) == (other.deny, other.passes, other.order)

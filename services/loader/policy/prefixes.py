"""The prefixes of policies in the kernel: those in use by identity in the ipcache, behind everything else
that is said of an address, and those in use by address in tries of their own.

What a former process left there stays until the policy service has named all prefixes that there are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Protocol

from services.chassis.logs import get_logger
from services.loader import failpoints
from services.loader.interfaces import DatapathError, PrefixKernel
from services.loader.policy.prefix_table import FIRST_NUMBER, Prefix, PrefixChanges, PrefixTable, in_order

_log = get_logger(__name__)


class PrefixIdentities(Protocol):
    """Where prefixes in use by identity go: the ipcache."""

    def prefix_identities(self) -> Mapping[str, int]:
        """Those that are known, with their numbers: at the start what the kernel holds."""

    def change_prefixes(self, changes: Mapping[str, int | None]) -> None:
        """These prefixes mean these numbers, unless something else is at them, or nothing of their own."""

    def prefix_problem(self) -> str:
        """Why the kernel does not hold what was last said; empty when it does."""


class PolicyPrefixes:
    """Keeps the kernel's prefixes as the policy service says. Raises DatapathError when it is made and the
    kernel cannot be read.
    """

    def __init__(self, kernel: PrefixKernel, identities: PrefixIdentities) -> None:
        self._kernel = kernel
        self._identities = identities
        self._held = dict(kernel.prefixes())
        self._table = PrefixTable(identities.prefix_identities(), self._held)
        # What the tries are to hold where that may differ; None: nothing.
        self._todo: dict[str, int | None] = {}
        self._told = False
        self._error = ""
        # A former process may have died before it had flows judged again under what it left.
        self._unsure = bool(self._held)

    @property
    def waiting(self) -> int:
        """How many prefixes are to begin to take effect."""
        return self._table.waiting

    @property
    def due(self) -> bool:
        """Whether :meth:`release` has anything to do."""
        return self._told and (bool(self._table.waiting) or self._unsure)

    @property
    def problem(self) -> str:
        """Why the kernel does not hold what it is to hold; empty when it does."""
        return self._error or self._identities.prefix_problem()

    def dormant(self, number: int, by_address: bool) -> bool:
        """Whether a number is that of a prefix that has no effect in that use: no packet is about it."""
        if number < FIRST_NUMBER or self._table.in_force(number, by_address=by_address):
            return False
        return not self.problem

    def labels(self, number: int) -> tuple[str, ...]:
        """The labels of the identity of a prefix that policies refer to; empty for any other."""
        cidr = self._table.cidr(number)
        if cidr is None or number < FIRST_NUMBER:
            return ()
        family = "world-ipv6" if ":" in cidr else "world-ipv4"
        return f"cidr:{cidr}", "reserved:world", f"reserved:{family}"

    def take(self, upserts: Iterable[Prefix], deletes: Iterable[str], *, whole: bool) -> bool:
        """Takes what the service says: what ends does so at once. Returns whether another prefix than before
        may hold an address now.
        """
        self._told = self._told or whole
        return self._apply(self._table.update(upserts, deletes, whole=whole))

    def release(self) -> bool:
        """Every subject's entries are in force: what waited begins. Returns as :meth:`take`."""
        unsure, self._unsure = self._unsure, False
        return self._apply(self._table.release()) or unsure

    def retry(self) -> bool:
        """Tries again what the kernel refused. Returns as :meth:`take`."""
        return self._write()

    async def verify(self) -> int:
        """Compares the tries with what was written there, and writes what differs; returns how many prefixes
        did. Raises DatapathError.
        """
        before = dict(self._held)
        found = await asyncio.to_thread(self._kernel.walk_prefixes)
        differing = 0
        for cidr in before.keys() | found.keys():
            # What was written meanwhile is right.
            if before.get(cidr) == found.get(cidr) or self._held.get(cidr) != before.get(cidr):
                continue
            differing += 1
            self._todo.setdefault(cidr, before.get(cidr))
            held = found.get(cidr)
            if held is None:
                self._held.pop(cidr, None)
            else:
                self._held[cidr] = held
        if differing:
            self._write()
            if self._error:
                raise DatapathError(self._error)
        return differing

    def _apply(self, changes: PrefixChanges) -> bool:
        self._todo.update(changes.by_address)
        # The tries first: by address alone nobody changes who he is.
        changed = self._write()
        if changes.by_identity:
            self._identities.change_prefixes(changes.by_identity)
        return changed

    def _write(self) -> bool:
        held = self._held
        ends = [cidr for cidr, number in self._todo.items() if number is None and cidr in held]
        begins = {
            cidr: number
            for cidr, number in self._todo.items()
            if number is not None and held.get(cidr) != number
        }
        deletes = in_order(ends, begin=False)
        puts = {cidr: begins[cidr] for cidr in in_order(begins, begin=True)}
        if not deletes and not puts:
            self._todo.clear()
            self._error = ""
            return False
        try:
            self._kernel.write_prefixes(puts, deletes)
            # Flows are not judged again yet; the next process cannot know, and has them judged at its start.
            failpoints.passed("prefixes.written")
        except (DatapathError, OSError) as problem:
            self._error = str(problem)
            _log.error("prefixes.write_failed", error=str(problem), prefixes=len(puts) + len(deletes))
            # Some of them may be there.
            return True
        self._error = ""
        self._todo.clear()
        held.update(puts)
        for cidr in deletes:
            held.pop(cidr, None)
        return True

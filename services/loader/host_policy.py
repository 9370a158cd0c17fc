"""The node under policies of its own: the host firewall.

The node is a subject like any other, told apart by its labels. What differs is that nothing of it is judged
while no policy selects it: its row in the kernel names the subject only while that has something to say. The
row is turned as part of realizing the subject, so that a revision is acknowledged when it holds for the node
too, and what a former process turned stays until the policy service says otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, Protocol

from services.chassis.logs import get_logger
from services.loader.interfaces import PolicyKernel
from services.loader.policy.subjects import HOST_USER, Subject, SubjectKey, SubjectTable, realized_from
from services.loader.settings import LoaderSettings
from services.loader.settings_types import FailsafePort

HOST: Final = 1

_TCP: Final = 6
_PORT = re.compile(r":([0-9]{1,5})$")

_log = get_logger(__name__)


class HostKernel(PolicyKernel, Protocol):
    """Policy and the node's own row. Every method raises DatapathError."""

    def host_subject(self) -> int:
        """The subject that the node itself is under; 0: none."""

    def set_host_subject(self, subject: int) -> None:
        """Puts the node itself under a subject; 0: under none."""


class HostPolicy:
    """Keeps the node under the policies that select it. ``labels`` are the node's, ``source:key=value``.

    With ``enabled`` False it is under none, whatever the policy service says. ``always``: whoever is under a
    policy is enforced, so that policies in audit mode alone must not put the node under one.
    """

    def __init__(
        self,
        kernel: HostKernel,
        table: SubjectTable,
        labels: Iterable[str],
        *,
        enabled: bool = True,
        always: bool = False,
    ) -> None:
        self._kernel = kernel
        self._table = table
        self._key = SubjectKey(HOST, labels=tuple(sorted(labels)))
        self._enabled = enabled
        self._always = always

    def start(self) -> None:
        """Takes up what a former process left in force, before anybody sweeps subjects that nobody uses. The
        policy service is asked for the node's policy with the next subscription. Raises DatapathError.
        """
        number = self._kernel.host_subject()
        if not self._enabled:
            if number:
                self._kernel.set_host_subject(0)
                _log.warning("host_policy.switched_off", subject=number)
            return
        if number:
            head = self._kernel.subjects().get(number)
            entries = self._kernel.policy()
            realized = realized_from(head, entries.get(head.instance, {})) if head is not None else None
            subject = self._table.restore(self._key, number, 0, HOST_USER, realized)
            _log.info("host_policy.restored", subject=number)
        else:
            subject, _ = self._table.acquire(self._key, 0, HOST_USER)
        subject.follow = self._follow

    def _follow(self, subject: Subject) -> None:
        """The subject's policy is in the kernel: it may be put into force, or has nothing more to say."""
        wanted = subject.wanted
        selected = wanted is not None and (wanted.decides if self._always else wanted.selected)
        number = subject.number if selected else 0
        if number != self._kernel.host_subject():
            self._kernel.set_host_subject(number)
            _log.info("host_policy.changed", enforced=bool(number), subject=subject.number)


def failsafe_ports(settings: LoaderSettings) -> tuple[FailsafePort, ...]:
    """The ports that no host policy closes: those of the settings, and where the services are reached. With
    none in the settings there are none at all.
    """
    configured = settings.failsafe_ports
    if not configured:
        return ()
    targets = (settings.ipam_target, settings.identity_target, settings.policy_target)
    services = [FailsafePort(False, port, _TCP) for target in targets for port in target_ports(target)]
    return tuple(dict.fromkeys((*configured, *services)))


def target_ports(target: str) -> list[int]:
    """The TCP ports that a gRPC target (``ipv4:192.0.2.1:4001``, ``dns:///ipam:4001``) is reached at."""
    if target.startswith(("unix:", "unix-abstract:", "vsock:")):
        return []
    found = (_PORT.search(address) for address in target.split(","))
    return [int(match[1]) for match in found if match is not None and 0 < int(match[1]) < 65536]

"""What the datapath reports: one Event per record of its ring buffer."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from services.loader.bpf.drop_reasons import reason_name, source_file
from services.loader.bpf.layout import EVENT_CODEC, Direction
from services.loader.bpf.native import check, check_pointer, ffi, lib

KIND_DROP = "drop"
KIND_VERDICT = "verdict"
_KINDS = {1: KIND_DROP, 2: KIND_VERDICT}
_FAMILY_IPV4 = 4


@dataclass(frozen=True, slots=True)
class Event:
    """A drop, or a policy verdict on a new flow.

    ``time_ns`` is on CLOCK_MONOTONIC; addresses are "" and ports 0 where the packet had none or was not read
    so far; ``rule_cookie`` and ``policy_revision`` are 0 where no policy entry decided; ``length`` in bytes
    with the Ethernet header.
    """

    kind: str
    time_ns: int
    reason: int
    direction: Direction
    allowed: bool
    source: str
    destination: str
    source_port: int
    destination_port: int
    protocol: int
    tcp_flags: int
    source_identity: int
    destination_identity: int
    endpoint_id: int
    ifindex: int
    rule_cookie: int
    policy_revision: int
    length: int
    file: str
    line: int

    @property
    def reason_name(self) -> str:
        """The drop's reason in words, "" for a verdict."""
        return reason_name(self.reason) if self.kind == KIND_DROP else ""

    @property
    def verdict(self) -> str:
        """``allow`` or ``deny``."""
        return "allow" if self.allowed else "deny"

    @classmethod
    def unpack(cls, data: bytes) -> Event:
        """From the bytes of ``struct event``."""
        (
            time_ns, revision, kind, reason, direction, verdict, file, line, ifindex, endpoint_id,
            src_identity, dst_identity, cookie, length, saddr, daddr, sport, dport, protocol, tcp_flags,
            family,
        ) = EVENT_CODEC.unpack_from(data)  # fmt: skip
        ipv4 = family == _FAMILY_IPV4
        return cls(
            kind=_KINDS.get(kind, f"kind {kind}"),
            time_ns=time_ns,
            reason=reason,
            direction=Direction(direction),
            allowed=bool(verdict),
            source=socket.inet_ntop(socket.AF_INET, saddr[:4]) if ipv4 else "",
            destination=socket.inet_ntop(socket.AF_INET, daddr[:4]) if ipv4 else "",
            source_port=int.from_bytes(sport, "big"),
            destination_port=int.from_bytes(dport, "big"),
            protocol=protocol,
            tcp_flags=tcp_flags,
            source_identity=src_identity,
            destination_identity=dst_identity,
            endpoint_id=endpoint_id,
            ifindex=ifindex,
            rule_cookie=cookie,
            policy_revision=revision,
            length=length,
            file=source_file(file),
            line=line,
        )


class EventReader:
    """The reading end of the ring buffer;

    There is one at a time. Events from before it was opened come first.
    """

    def __init__(self, map_fd: int, callback: Callable[[Event], None]) -> None:
        self._callback = callback
        self._error: BaseException | None = None
        self._left = 0
        # Held for as long as the kernel's reader may call it.
        self._sample = ffi.callback("int(void *, void *, size_t)", self._on_sample)
        self._reader: Any = check_pointer(
            lib.ring_buffer__new(map_fd, self._sample, ffi.NULL, ffi.NULL), "open the event ring buffer"
        )

    def _on_sample(self, _context: object, data: Any, size: int) -> int:
        try:
            self._callback(Event.unpack(bytes(ffi.buffer(data, size))))
        except BaseException as error:
            # Through C no exception passes: keep it for consume(), and stop there.
            self._error = error
            return -1
        self._left -= 1
        return 0 if self._left > 0 else -errno.ECANCELED

    def fileno(self) -> int:
        """A descriptor that is readable when there are events; for an event loop."""
        return int(lib.ring_buffer__epoll_fd(self._reader))

    def consume(self, limit: int = 512) -> int:
        """Calls back for the events there are, at most ``limit``. Returns how many that were.

        Raises what the callback raised; that event is taken. The limit gives the caller's other work a turn
        while events come faster than they are read.
        """
        self._left = limit
        result = lib.ring_buffer__consume(self._reader)
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        if result != -errno.ECANCELED:
            check(result, "read events")
        return limit - self._left

    def close(self) -> None:
        """Ends reading. The datapath goes on; what finds no room is counted as lost."""
        if self._reader is not None:
            lib.ring_buffer__free(self._reader)
            self._reader = None

"""What the datapath reports: one Event per record of its ring buffer."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from services.loader.bpf.drop_reasons import reason_name, source_file
from services.loader.bpf.layout import EVENT_CODEC, Direction, ipv4_text, ipv6_text
from services.loader.bpf.maps import describe
from services.loader.bpf.native import check, check_pointer, ffi, lib

KIND_DROP = "drop"
KIND_VERDICT = "verdict"
KIND_TRACE = "trace"
_KINDS = {1: KIND_DROP, 2: KIND_VERDICT, 3: KIND_TRACE}
_VERDICTS = {0: "deny", 1: "allow", 2: "audit"}
_POINTS = {1: "to-endpoint", 2: "to-overlay", 3: "to-host", 4: "to-network"}
_STATES = {1: "new", 2: "related", 3: "closing"}


@dataclass(frozen=True, slots=True)
class Event:
    """A drop, a policy verdict on a new flow, or a trace of a flow's beginning or end.

    ``time_ns`` is on CLOCK_MONOTONIC; addresses are "" and ports 0 where the packet had none or was not read
    so far; ``rule_cookie`` and ``policy_revision`` are 0 where no policy entry decided; ``length`` in bytes
    with the Ethernet header. ``verdict`` is "allow", "deny", or "audit" for what passed although denied. Of a
    trace, ``point`` says where the packet goes and ``state`` what it is to its flow. ``packet`` is its
    beginning, at most 96 bytes from the Ethernet header on.
    """

    kind: str
    time_ns: int
    reason: int
    direction: Direction
    verdict: str
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
    point: str
    state: str
    packet: bytes

    @property
    def reason_name(self) -> str:
        """The reason of a drop, or of one that audit mode let pass, in words; else ""."""
        return reason_name(self.reason) if self.reason else ""

    @property
    def allowed(self) -> bool:
        """Whether the packet passed."""
        return self.verdict != "deny"

    @classmethod
    def unpack(cls, data: bytes) -> Event:
        """From the bytes of ``struct event``."""
        (
            time_ns, revision, kind, reason, direction, verdict, file, line, ifindex, endpoint_id,
            src_identity, dst_identity, cookie, length, saddr, daddr, sport, dport, protocol, tcp_flags,
            family, point, state, captured, octets,
        ) = EVENT_CODEC.unpack_from(data)  # fmt: skip
        return cls(
            kind=_KINDS.get(kind, f"kind {kind}"),
            time_ns=time_ns,
            reason=reason,
            direction=Direction(direction),
            verdict=_VERDICTS.get(verdict, f"verdict {verdict}"),
            source=_address(family, saddr),
            destination=_address(family, daddr),
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
            point=_POINTS.get(point, ""),
            state=_STATES.get(state, ""),
            packet=octets[:captured],
        )


def _address(family: int, data: bytes) -> str:
    if family == 4:
        return ipv4_text(data[:4])
    return ipv6_text(data) if family == 6 else ""


class EventReader:
    """The reading end of the ring buffer;

    There is one at a time; ``closed`` is called when it ends. The kernel wakes it at most once a tick of its
    coarse clock (1 to 10 ms): what comes later in the tick is there to be consumed, without a wakeup.
    """

    def __init__(
        self, map_fd: int, callback: Callable[[Event], None], closed: Callable[[], None] = lambda: None
    ) -> None:
        self._callback = callback
        self._closed = closed
        self._error: BaseException | None = None
        self._left = 0
        # Held for as long as the kernel's reader may call it.
        self._sample = ffi.callback("int(void *, void *, size_t)", self._on_sample)
        self._lock = threading.Lock()
        self._maps = {describe(map_fd)[0]}
        self._reader: Any = check_pointer(
            lib.ring_buffer__new(map_fd, self._sample, ffi.NULL, ffi.NULL), "open the event ring buffer"
        )

    def follow(self, map_id: int, map_fd: int) -> None:
        """Reads another ring buffer too, by the same descriptor: programs that write that one may have taken
        the place of others, whose last events are still to be read. Any thread may call it.

        The rings of before go when reading ends. Raises BpfError.
        """
        with self._lock:
            if self._reader is None or map_id in self._maps:
                return
            check(
                lib.ring_buffer__add(self._reader, map_fd, self._sample, ffi.NULL),
                "open the event ring buffer",
            )
            self._maps.add(map_id)

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
        with self._lock:
            result = lib.ring_buffer__consume(self._reader)
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        if result != -errno.ECANCELED:
            check(result, "read events")
        return limit - self._left

    def close(self) -> None:
        """Ends reading. The datapath goes on; what finds no room is counted as lost."""
        with self._lock:
            reader, self._reader = self._reader, None
            if reader is not None:
                lib.ring_buffer__free(reader)
        if reader is not None:
            self._closed()

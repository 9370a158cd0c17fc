"""The structs that the runner and bpf/tests/lib/test.h share, as the bytes of map values."""

from __future__ import annotations

import struct
from dataclasses import dataclass

CONTEXT_NEEDS_LAUNCHER = 0x1F  # CONTEXT_*: what BPF_PROG_TEST_RUN itself cannot give a packet
TEST_DONE = 100
LAUNCH_FAILED = 101
EVENTS, EVENT_BYTES = 8, 512
FAILURES = 16
FRAME_MAX, FRAME_SLACK = 4096, 512

_CONTEXT = struct.Struct("=24s4I5I10I4xQ")
_RESULT = struct.Struct("=i2I5IQI16sI")
_EVENT = struct.Struct(f"=I4x{EVENT_BYTES}s")
_FAILURE = struct.Struct("=QQQ80s")
_REPORT = struct.Struct(f"=II{FAILURES * _FAILURE.size}s")
_FRAME = struct.Struct(f"=I20s48s{FRAME_MAX + FRAME_SLACK}s")

# By map: the bytes of one value. The runner compares them with the maps that it has loaded.
VALUE_SIZES = {
    "test_context": _CONTEXT.size,
    "test_result": _RESULT.size,
    "test_events": _EVENT.size,
    "test_report": _REPORT.size,
    "test_frames": _FRAME.size,
}
NO_FORWARD = bytes(16)  # struct test_forward of the datapath: no redirect


@dataclass(frozen=True, slots=True)
class Context:
    """``struct test_context``: how a packet gets to its program."""

    program: str
    ifindex: int
    ingress_ifindex: int
    mark: int
    priority: int
    cb: tuple[int, ...]
    gso_size: int
    gso_segs: int
    flags: int
    repeat: int
    variant: int
    tstamp: int

    @classmethod
    def unpack(cls, data: bytes) -> Context:
        """From a value of test_context."""
        (
            program, ifindex, ingress_ifindex, mark, priority, cb0, cb1, cb2, cb3, cb4,
            gso_size, gso_segs, flags, _tunnel_id, _peer, _vlan, _length, _type, repeat,
            variant, tstamp,
        ) = _CONTEXT.unpack(data)  # fmt: skip
        return cls(
            program.rstrip(b"\0").decode(), ifindex, ingress_ifindex, mark, priority,
            (cb0, cb1, cb2, cb3, cb4), gso_size, gso_segs, flags, repeat or 1, variant, tstamp,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run of the program under test gave: its action, and the packet and metadata as it left them."""

    action: int
    mark: int
    priority: int
    cb: tuple[int, ...]
    tstamp: int
    frame: bytes


def pack_result(outcome: Outcome, events: int, forward: bytes) -> bytes:
    """A value of test_result; ``forward`` is one of the datapath's test_forward."""
    return _RESULT.pack(
        outcome.action, outcome.mark, outcome.priority, *outcome.cb, outcome.tstamp, events, forward, 0
    )


def pack_event(data: bytes) -> bytes:
    """A value of test_events."""
    return _EVENT.pack(min(len(data), EVENT_BYTES), data[:EVENT_BYTES])


def frame_bytes(value: bytes) -> bytes:
    """The frame in a value of test_frames."""
    length, _, _, data = _FRAME.unpack(value)
    return bytes(data[:length])


def pack_frame(frame: bytes, sent: bytes) -> bytes:
    """A value of test_frames for a result; headers are taken to be where those of ``sent``'s value are."""
    _, offsets, layers, _ = _FRAME.unpack(sent)
    return _FRAME.pack(len(frame), offsets, layers, frame[:FRAME_MAX])


@dataclass(frozen=True, slots=True)
class Failure:
    """An assertion that did not hold, with the values of its two sides."""

    line: int
    text: str
    left: int
    right: int


@dataclass(frozen=True, slots=True)
class Report:
    """A test's assertions: how many held, how many did not, and the last of these."""

    passed: int
    failed: int
    failures: tuple[Failure, ...]

    @classmethod
    def unpack(cls, data: bytes) -> Report:
        """From a value of test_report."""
        passed, failed, rows = _REPORT.unpack(data)
        found = [
            Failure(line, text.partition(b"\0")[0].decode(), left, right)
            for left, right, line, text in _FAILURE.iter_unpack(rows)
            if line
        ]
        return cls(passed, failed, tuple(found))

"""The runner itself: what it finds, what it fails, and that the builder's frames are right."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

import pytest

from services.loader.bpf.testrun import TC_ACT_SHOT
from tests.kernel.bpf.packets import checksum
from tests.kernel.ctests.layout import Report, frame_bytes
from tests.kernel.ctests.machine import CTestFailure, Machine
from tests.kernel.ctests.objects import CTest, compile_source, find_tests, program_names

pytestmark = pytest.mark.kernel

_TCP, _UDP, _ICMP, _ICMPV6, _SCTP = 6, 17, 1, 58, 132


def sample(directory: Path, text: str) -> dict[str, CTest]:
    """The tests of a source with this text, by name and family."""
    path = directory / "sample.c"
    path.write_text(f'#include "tests/lib/scenario.h"\n{text}')
    return {
        f"{test.name}-{test.family}": test
        for test in find_tests(str(path), program_names(compile_source(str(path))))
    }


def test_assertions_that_fail_are_reported_with_their_values(machine: Machine, tmp_path: Path) -> None:
    found = sample(
        tmp_path,
        "PKTGEN4(fails, from_container, lxc_a) { make_udp(frame, v6, POD_A, POD_B, 1, 2); }\n"
        "CHECK4(fails)\n{\n\tassert_eq(result->action, 99);\n\ttest_assert(v6);\n\tassert_le(2, 1);\n"
        "\tassert_eq(1, 1);\n\ttest_require(frame->length > 5000);\n\tassert_eq(3, 4);\n}\n",
    )
    report = machine.run(found["fails-v4"])
    assert (report.passed, report.failed) == (1, 4)
    assert [(f.line, f.text, f.left, f.right) for f in report.failures] == [
        (5, "result->action == 99", TC_ACT_SHOT, 99),
        (6, "v6", 0, 1),
        (7, "2 <= 1", 2, 1),
        (9, "frame->length > 5000", 0, 1),
    ]


def test_each_test_starts_on_empty_maps(machine: Machine, tmp_path: Path) -> None:
    found = sample(
        tmp_path,
        "SETUP(leaves) { add_cluster(); }\n"
        "PKTGEN(leaves, from_container, lxc_a) { make_udp(frame, v6, POD_A, POD_B, 1, 2); }\n"
        "CHECK(leaves) { assert_eq(!flow_of(v6, IPPROTO_UDP, POD_A, 1, POD_B, 2), 0); }\n"
        "PKTGEN(finds, from_container, lxc_a) { make_udp(frame, v6, POD_A, POD_B, 1, 2); }\n"
        "CHECK(finds) { assert_dropped(DROP_NO_ENDPOINT_ROW); assert_eq(result->events, 0);\n"
        " assert_eq(!flow_of(v6, IPPROTO_UDP, POD_A, 1, POD_B, 2), 1); }\n",
    )
    for name in ("leaves-v4", "leaves-v6", "finds-v4", "finds-v6"):
        report = machine.run(found[name])
        assert report.passed and not report.failed, name


def test_a_test_that_asserts_nothing_has_no_checks(machine: Machine, tmp_path: Path) -> None:
    found = sample(
        tmp_path,
        "PKTGEN4(idle, to_container, lxc_a) { make_arp(frame, 1, POD_A, POD_B); }\nCHECK4(idle) {}\n",
    )
    assert machine.run(found["idle-v4"]) == Report(0, 0, ())


def test_a_program_that_is_not_there_is_named(machine: Machine, tmp_path: Path) -> None:
    found = sample(tmp_path, "PKTGEN4(lost, from_nowhere, lxc_a) { make_arp(frame, 1, POD_A, POD_B); }\n")
    with pytest.raises(CTestFailure, match="no program from_nowhere"):
        machine.run(found["lost-v4"])


@pytest.mark.parametrize(
    ("programs", "message"),
    [
        (["stray"], "not made by"),
        (["a__v4__check_1"], "without its PKTGEN"),
        (["a__v4__pktgen_1", "a__v4__pktgen_3"], r"packets \[1, 3\]"),
        (["a__v4__pktgen_1", "a__v6__check_1"], "a-v6"),
    ],
)
def test_parts_that_do_not_fit_are_refused(programs: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_tests("tests/x.c", programs)


BUILT = {
    "tcp": "make_tcp(frame, v6, POD_A, WORLD, 1000, 80, TCP_SYN)",
    "udp": "make_udp(frame, v6, POD_A, WORLD, 1000, 53)",
    "long": "put_ip(frame, v6, POD_A, WORLD, IPPROTO_UDP); put_udp(frame, 1, 2); put_payload(frame, 1401); "
    "finish(frame)",
    "echo": "make_echo(frame, v6, POD_A, WORLD, 7)",
    "reply": "make_echo_reply(frame, v6, POD_A, WORLD, 7)",
    "sctp": "make_sctp(frame, v6, POD_A, WORLD, 1000, 9, 1)",
    "error": "put_icmp_error(frame, v6, WORLD, POD_A, v6 ? 1 : 3, 3, 0); "
    "put_ip(frame, v6, POD_A, WORLD, IPPROTO_UDP); put_udp(frame, 1000, 53); finish(frame)",
}


def test_built_frames_are_right_by_another_account(machine: Machine, tmp_path: Path) -> None:
    """The builder's lengths and checksums, calculated once more here."""
    found = sample(
        tmp_path,
        "".join(
            f"PKTGEN({name}, to_container, lxc_a) {{ {body}; }}\n"
            f"CHECK({name}) {{ test_assert(checksums_hold(sent)); }}\n"
            for name, body in BUILT.items()
        ),
    )
    for test in found.values():
        report = machine.run(test)
        assert report.passed and not report.failed, test
        frame = frame_bytes(machine.value("test_frames"))
        assert_sound(frame[14:], socket.AF_INET6 if test.family == "v6" else socket.AF_INET)


def assert_sound(packet: bytes, family: socket.AddressFamily) -> None:
    if family == socket.AF_INET:
        assert packet[0] == 0x45
        assert checksum(packet[:20]) == 0
        assert struct.unpack_from("!H", packet, 2)[0] == len(packet)
        protocol, body, addresses = packet[9], packet[20:], packet[12:20]
        length = struct.pack("!BBH", 0, protocol, len(body))
    else:
        assert packet[0] == 0x60
        assert struct.unpack_from("!H", packet, 4)[0] == len(packet) - 40
        protocol, body, addresses = packet[6], packet[40:], packet[8:40]
        length = struct.pack("!II", len(body), protocol)
    if protocol == _SCTP:
        assert crc32c(body[:8] + bytes(4) + body[12:]) == struct.unpack_from("<I", body, 8)[0]
    elif protocol == _ICMP:
        assert checksum(body) == 0
    else:
        assert protocol in (_TCP, _UDP, _ICMPV6)
        assert checksum(addresses + length + body) == 0
    if protocol == _UDP:
        assert struct.unpack_from("!H", body, 4)[0] == len(body)
    if protocol in (_ICMP, _ICMPV6) and body[0] in (1, 3):
        assert_sound(body[8:], family)


def crc32c(data: bytes) -> int:
    """Castagnoli's CRC (RFC 9260, appendix A), bit by bit."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF

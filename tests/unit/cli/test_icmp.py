"""The ICMP messages of a probe."""

from __future__ import annotations

import socket
import struct

from cli.lab import icmp


def test_a_message_carries_its_checksum() -> None:
    message = icmp.message(socket.AF_INET, 8, 0x1234)
    words = struct.unpack(f"!{len(message) // 2}H", message)
    total = sum(words)
    # Sums to all ones with the checksum in place (RFC 1071).
    assert (total & 0xFFFF) + (total >> 16) == 0xFFFF


def test_the_kernel_sums_up_icmpv6() -> None:
    assert icmp.message(socket.AF_INET6, 128, 0x1234)[2:4] == bytes(2)


def test_a_message_is_read_back() -> None:
    assert icmp.parse(icmp.message(socket.AF_INET, 13, 0xABCD)) == (13, 0xABCD)
    assert icmp.parse(icmp.message(socket.AF_INET6, 129, 7)) == (129, 7)


def test_what_is_cut_short_is_passed_over() -> None:
    message = icmp.message(socket.AF_INET, 8, 1)
    assert icmp.parse(message[:7]) is None
    assert icmp.parse(b"") is None

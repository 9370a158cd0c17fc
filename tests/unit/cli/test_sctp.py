"""The SCTP packets of a probe."""

from __future__ import annotations

from cli.lab import sctp


def test_the_checksum_is_castagnolis() -> None:
    # Check value of the CRC catalogue, and the vectors of RFC 3720, B.4.
    assert sctp.crc32c(b"123456789") == 0xE3069283
    assert sctp.crc32c(bytes(32)) == 0x8A9136AA
    assert sctp.crc32c(b"\xff" * 32) == 0x62A8AB43


def test_an_init_is_read_back() -> None:
    packet = sctp.parse(sctp.init(40000, 80, 7), "10.0.0.1")
    assert packet is not None and packet.is_init
    assert (packet.source, packet.source_port, packet.destination_port, packet.tag) == (
        "10.0.0.1",
        40000,
        80,
        7,
    )


def test_the_answer_goes_the_way_back() -> None:
    request = sctp.parse(sctp.init(40000, 80, 7), "10.0.0.1")
    assert request is not None
    answer = sctp.parse(sctp.init_ack(request, 9), "10.0.0.2")
    assert answer is not None and not answer.is_init
    assert (answer.source_port, answer.destination_port, answer.tag) == (80, 40000, 9)


def test_a_packet_carries_its_own_checksum() -> None:
    packet = sctp.init(40000, 80, 7)
    zeroed = packet[:8] + bytes(4) + packet[12:]
    assert packet[8:12] == sctp.crc32c(zeroed).to_bytes(4, "little")


def test_what_is_cut_short_is_passed_over() -> None:
    whole = sctp.init(1, 2, 3)
    assert all(sctp.parse(whole[:length], "::1") is None for length in (0, 11, 12, 19))


def test_an_ipv4_header_is_taken_off_with_its_options() -> None:
    assert sctp.without_ipv4_header(b"\x45" + bytes(19) + b"rest") == b"rest"
    assert sctp.without_ipv4_header(b"\x46" + bytes(23) + b"rest") == b"rest"
    assert sctp.without_ipv4_header(b"\x45" + bytes(18)) == b""

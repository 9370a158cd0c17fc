"""What the lab accepts as names, labels and ports, and how it refuses the rest."""

from __future__ import annotations

import pytest

from cli.errors import BadInput
from cli.lab import syntax
from cli.lab.syntax import NamedPort, PodRef


@pytest.mark.parametrize("text", ["shop/web", "a/b.c-d.1", "n1/" + "x" * 253])
def test_pods_are_named_namespace_slash_name(text: str) -> None:
    assert str(syntax.parse_pod(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "web",
        "shop/",
        "/web",
        "Shop/web",
        "shop/we_b",
        "shop/-web",
        "a/b/c",
        "shop/" + "x" * 254,
        "s" * 64 + "/a",
    ],
)
def test_an_illegal_pod_name_is_refused_with_the_value(text: str) -> None:
    with pytest.raises(BadInput) as caught:
        syntax.parse_pod(text)
    assert "expected" in caught.value.message
    assert caught.value.exit_code == 2


def test_labels_may_have_a_prefix_and_an_empty_value() -> None:
    assert syntax.parse_labels(["app=web", "example.org/tier=", "a.b_c-D=1.2_3"]) == {
        "app": "web",
        "example.org/tier": "",
        "a.b_c-D": "1.2_3",
    }


@pytest.mark.parametrize(
    "text", ["app", "=web", "-app=web", "app=we b", "Bad/Prefix_/x=1", "app=" + "v" * 64]
)
def test_an_illegal_label_is_refused(text: str) -> None:
    with pytest.raises(BadInput):
        syntax.parse_labels([text])


def test_one_key_with_two_values_is_refused() -> None:
    with pytest.raises(BadInput, match="already has 'web'"):
        syntax.parse_labels(["app=web", "app=db"])


def test_label_changes_set_and_remove() -> None:
    changes = syntax.parse_label_changes(["app=db", "tier-", "new=1"])
    assert changes == {"app": "db", "tier": None, "new": "1"}
    assert syntax.changed({"app": "web", "tier": "front", "kept": "x"}, changes) == {
        "app": "db",
        "kept": "x",
        "new": "1",
    }


@pytest.mark.parametrize("changes", [["app"], ["app=1", "app-"], ["-"], ["app=1", "app=2"]])
def test_changes_that_say_nothing_or_two_things_are_refused(changes: list[str]) -> None:
    with pytest.raises(BadInput):
        syntax.parse_label_changes(changes)


def test_ports_default_to_tcp_and_know_three_protocols() -> None:
    assert syntax.parse_port("80") == (80, "TCP")
    assert syntax.parse_port("53/udp") == (53, "UDP")
    assert syntax.parse_port("9/SCTP") == (9, "SCTP")


def test_a_type_of_icmp_is_in_the_place_of_a_port() -> None:
    assert syntax.parse_port_or_type("8/ICMP") == (8, "ICMP")
    assert syntax.parse_port_or_type("0/icmp") == (0, "ICMP")
    assert syntax.parse_port_or_type("128/ICMPv6") == (128, "ICMPV6")
    assert syntax.parse_port_or_type("80") == (80, "TCP")


@pytest.mark.parametrize("text", ["256/ICMP", "/ICMP", "x/ICMPv6", "-1/ICMP"])
def test_a_type_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="type from 0 to 255"):
        syntax.parse_port_or_type(text)


@pytest.mark.parametrize("text", ["0/TCP", "65536/TCP", "http", "80/ICMP", "-1", "80/", "", "8 0"])
def test_an_illegal_port_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="expected"):
        syntax.parse_port(text)


def test_named_ports_follow_rfc_6335() -> None:
    assert syntax.parse_named_ports(["http:80/TCP", "dns:53/UDP", "dns:53/TCP"]) == (
        NamedPort("http", 80, "TCP"),
        NamedPort("dns", 53, "UDP"),
        NamedPort("dns", 53, "TCP"),
    )


@pytest.mark.parametrize(
    "text", ["80/TCP", "HTTP:80/TCP", "123:80/TCP", "a--b:80/TCP", "x" * 16 + ":80/TCP", "a-:1/TCP"]
)
def test_an_illegal_named_port_is_refused(text: str) -> None:
    with pytest.raises(BadInput):
        syntax.parse_named_port(text)


def test_one_name_for_two_ports_of_a_protocol_is_refused() -> None:
    with pytest.raises(BadInput, match="already stands for 80"):
        syntax.parse_named_ports(["http:80/TCP", "http:81/TCP"])


def test_a_pod_reference_reads_as_it_is_written() -> None:
    assert syntax.parse_pod("shop/web") == PodRef("shop", "web")


def test_annotations_have_keys_of_labels_and_any_value() -> None:
    assert syntax.parse_annotations(["fimbria.io/ip-pool=blue", "note=a b, c=d"]) == {
        "fimbria.io/ip-pool": "blue",
        "note": "a b, c=d",
    }
    assert syntax.parse_annotation_changes(["fimbria.io/ip-pool=blue", "note-"]) == {
        "fimbria.io/ip-pool": "blue",
        "note": None,
    }


@pytest.mark.parametrize("texts", [["note"], ["=x"], ["not a key=x"], ["a=1", "a=2"]])
def test_an_illegal_annotation_is_refused(texts: list[str]) -> None:
    with pytest.raises(BadInput):
        syntax.parse_annotations(texts)

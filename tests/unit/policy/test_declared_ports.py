# SPDX-License-Identifier: Apache-2.0
"""Whose named ports are known, while nodes come and go."""

from __future__ import annotations

from services.policy.declared_ports import DeclaredPorts
from services.policy.engine import Subject
from services.policy.rules import NamedPort, Protocol

HTTP = NamedPort("http", Protocol.TCP, 8080)
SQL = NamedPort("sql", Protocol.TCP, 5432)
WEB, BOTH = Subject(300, (HTTP,)), Subject(300, (HTTP, SQL))


def test_ports_are_the_union_over_nodes_and_subjects() -> None:
    changed: list[str] = []
    ports = DeclaredPorts(changed=changed.append)
    assert ports.declare("a", WEB) == [300]
    assert ports.declare("b", BOTH) == [300]
    assert ports.of(300) == {HTTP, SQL}
    assert ports.withdraw("b", BOTH) == [300]
    assert ports.of(300) == {HTTP}
    assert changed == ["a", "b", "b"]


def test_what_declares_nothing_is_not_kept() -> None:
    ports = DeclaredPorts()
    assert ports.declare("a", Subject(300)) == []
    assert ports.withdraw("a", Subject(300)) == []
    assert ports.identities() == []


def test_a_node_that_is_away_keeps_its_ports_until_it_settles() -> None:
    ports = DeclaredPorts()
    ports.declare("a", WEB)
    ports.declare("a", Subject(301, (SQL,)))
    ports.disconnect("a")
    assert ports.of(300) == {HTTP}
    assert ports.declare("a", WEB) == []
    assert ports.settle("a") == [301]
    assert ports.of(300) == {HTTP}
    assert not ports.of(301)
    assert ports.settle("a") == []


def test_ports_of_earlier_processes_count() -> None:
    ports = DeclaredPorts({"a": [WEB]})
    assert ports.identities() == [300]
    assert ports.by_node("a") == {WEB}
    assert ports.forget_node("a") == [300]
    assert ports.of(300) == frozenset()
    assert ports.by_node("a") == frozenset()


def test_an_identity_that_is_gone_takes_the_word_of_absent_nodes_with_it() -> None:
    ports = DeclaredPorts({"away": [WEB]})
    ports.declare("here", WEB)
    ports.forget_identity(300)
    assert ports.of(300) == {HTTP}
    ports.withdraw("here", WEB)
    assert ports.of(300) == frozenset()


def test_the_store_s_word_replaces_what_was_known_of_a_node_that_is_not_here() -> None:
    changed: list[str] = []
    ports = DeclaredPorts({"away": [WEB]}, changed.append)
    assert set(ports.replace("away", [Subject(301, (SQL,))])) == {300, 301}
    assert not ports.of(300)
    assert ports.of(301) == {SQL}
    assert ports.replace("away", [Subject(301, (SQL,))]) == []
    assert ports.replace("away", []) == [301]
    assert ports.nodes() == []
    # What the store said need not be stored.
    assert changed == []


def test_a_node_that_comes_here_keeps_what_the_store_said_until_it_settles() -> None:
    ports = DeclaredPorts()
    ports.replace("n", [WEB])
    assert ports.declare("n", BOTH) == [300]
    assert ports.of(300) == {HTTP, SQL}
    assert ports.settle("n") == [300]
    assert ports.by_node("n") == {BOTH}

# SPDX-License-Identifier: Apache-2.0
"""A peer in use has exactly the numbers that it matches one by one, whenever it came."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from services.policy.prefixes import within
from services.policy.rules import CidrPeer
from services.policy.selector import (
    ANY_SOURCE,
    K8S,
    NAMESPACE_KEY,
    Labels,
    Operator,
    Requirement,
    Selector,
    equals,
)
from services.policy.selector_cache import SelectorCache

KEYS = ("app", "tier", NAMESPACE_KEY)
SOURCES = (K8S, "own")
NUMBERS = st.integers(1, 6)

label_sets = st.lists(
    st.builds(
        lambda source, key, value: f"{source}:{key}{value}",
        st.sampled_from(SOURCES),
        st.sampled_from(KEYS),
        st.sampled_from(("", "=", "=a", "=b", "=c=d")),
    ),
    max_size=4,
).map(Labels)
requirements = st.builds(
    lambda source, key, operator, values: Requirement(
        source, key, operator, tuple(sorted(values)) if operator.value.endswith("In") else ()
    ),
    st.sampled_from((*SOURCES, ANY_SOURCE)),
    st.sampled_from(KEYS),
    st.sampled_from(Operator),
    st.sets(st.sampled_from(("", "a", "b", "c=d")), min_size=1, max_size=3),
)
selectors = st.lists(requirements, max_size=3).map(Selector.of)


def put(cache: SelectorCache[str], number: int, labels: Labels | None) -> None:
    cache.follow(number, cache.label_changes(number, labels))
    cache.put_labels(number, labels)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(NUMBERS, st.one_of(st.none(), label_sets)), max_size=8),
    st.lists(selectors, min_size=1, max_size=4),
    st.lists(st.tuples(NUMBERS, st.one_of(st.none(), label_sets)), max_size=8),
)
def test_selectors_match_what_they_match_one_by_one(
    before: list[tuple[int, Labels | None]],
    used: list[Selector],
    after: list[tuple[int, Labels | None]],
) -> None:
    cache: SelectorCache[str] = SelectorCache()
    there: dict[int, Labels | None] = {}
    for number, labels in before:
        put(cache, number, labels)
        there[number] = labels
    matched = [cache.use(selector, "user") for selector in used]
    for number, labels in [*after, *((number, labels) for number, labels in after[:2])]:
        put(cache, number, labels)
        there[number] = labels
    late: SelectorCache[str] = SelectorCache()
    for number, known in there.items():
        put(late, number, known)
    for selector, found in zip(used, matched, strict=True):
        expected = {
            number for number, known in there.items() if known is not None and selector.matches(known)
        }
        assert set(found.numbers) == expected
        assert set(late.use(selector, "user").numbers) == expected


CIDRS = (
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.0.0.0/16",
    "10.128.0.0/9",
    "10.128.0.1/32",
    "255.255.255.255/32",
    "::/0",
    "2001:db8::/32",
    "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128",
)


@settings(max_examples=300, deadline=None)
@given(
    st.sets(st.sampled_from(CIDRS)),
    st.lists(
        st.builds(CidrPeer, st.sampled_from(CIDRS), st.lists(st.sampled_from(CIDRS), max_size=2).map(tuple)),
        min_size=1,
        max_size=3,
    ),
    st.lists(st.sampled_from(CIDRS), max_size=6),
)
def test_cidrs_match_the_prefixes_within_them(
    before: set[str], peers: list[CidrPeer], toggled: list[str]
) -> None:
    cache: SelectorCache[str] = SelectorCache()
    numbers = {cidr: number for number, cidr in enumerate(CIDRS, 1)}
    there: set[str] = set()

    def toggle(cidr: str) -> None:
        now = cidr not in there
        number = numbers[cidr]
        cache.follow(number, cache.prefix_changes(number, cidr, by_address=False, there=now))
        cache.put_prefix(number, cidr, by_address=False, there=now)
        (there.add if now else there.remove)(cidr)

    for cidr in sorted(before):
        toggle(cidr)
    matched = [cache.use(peer, "user") for peer in peers]
    for cidr in toggled:
        toggle(cidr)
    for peer, found in zip(peers, matched, strict=True):
        assert set(found.numbers) == {
            numbers[cidr] for cidr in there if within(cidr, peer.cidr, peer.excepts)
        }


def test_one_peer_is_evaluated_once_for_all_its_users_and_forgotten_with_the_last() -> None:
    cache: SelectorCache[str] = SelectorCache()
    put(cache, 300, Labels(["k8s:app=a"]))
    selector = Selector.of([equals(K8S, "app", "a")])
    one, other = cache.use(selector, "one"), cache.use(Selector.of([equals(K8S, "app", "a")]), "other")
    assert one is other
    cache.release(one, "one")
    assert cache.use(selector, "third") is one
    cache.release(one, "third")
    cache.release(one, "other")
    assert cache.use(selector, "fourth") is not one
    assert list(cache.matching(Labels(["k8s:app=b"]))) == []

"""Addresses of a pool that nobody gets: how they are written, and which slots of a CIDR they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import orjson

from services.ipam.addresses import AddressRange
from services.ipam.cidr import merged, parse_address, parse_cidr
from services.ipam.family import Address, Family, Network, comma_separated, family_of
from services.ipam.problems import invalid


@dataclass(frozen=True, slots=True)
class Span:
    """The addresses of one family from `first` to `last`, both included, as numbers.

    `text` is the normal form: "10.0.0.0/28", "10.0.0.7" or "10.0.0.4-10.0.0.9".
    """

    family: Family
    first: int
    last: int
    text: str


def parse(text: str, field: str) -> Span:
    """The span written as `text`: a CIDR, an address or a range FIRST-LAST.

    Raises InvalidArgument naming `field`.
    """
    if "-" in text:
        return _range(text, field)
    if "/" in text:
        network = parse_cidr(text, field)
        if network.num_addresses > 1:
            first, last = int(network.network_address), int(network.broadcast_address)
            return Span(family_of(network), first, last, str(network))
        return _single(network.network_address)
    return _single(parse_address(text, field))


def parse_all(texts: Sequence[str], field: str) -> tuple[Span, ...]:
    """The spans written as `texts`, each once, in numeric order, IPv4 first."""
    spans = {parse(text, f"{field}[{at}]") for at, text in enumerate(texts)}
    return tuple(sorted(spans, key=lambda span: (span.family, span.first, span.last, span.text)))


def check_within(spans: Sequence[Span], cidrs: Iterable[Network], field: str) -> None:
    """Raises InvalidArgument (EXCLUSION_OUTSIDE) unless each of `spans` lies inside `cidrs`."""
    cidrs = tuple(cidrs)
    for span in spans:
        if not _inside(span, cidrs):
            raise invalid(
                field,
                f"{span.text} is not inside the pool; expected addresses of {comma_separated(cidrs)}",
                reason="EXCLUSION_OUTSIDE",
                value=span.text,
            )


def touches(span: Span, cidrs: Iterable[Network]) -> bool:
    """Whether `span` has an address of any of `cidrs`."""
    return any(
        cidr.version == span.family
        and span.first <= int(cidr.broadcast_address)
        and int(cidr.network_address) <= span.last
        for cidr in cidrs
    )


def spans_within(spans: Iterable[Span], network: Network) -> list[tuple[int, int]]:
    """The slots of `network` that `spans` cover: disjoint, ascending (first, last), both included."""
    start, end = int(network.network_address), int(network.broadcast_address)
    return merged(
        (max(span.first, start) - start, min(span.last, end) - start)
        for span in spans
        if span.family == network.version and span.first <= end and start <= span.last
    )


def excluded_count(spans: Iterable[Span], bounds: AddressRange) -> int:
    """How many of the slots that pods may have in `bounds` `spans` take away."""
    within = spans_within(spans, bounds.network)
    return sum(max(0, min(last, bounds.last) - max(first, bounds.first) + 1) for first, last in within)


def encode_spans(spans: Iterable[Span]) -> str:
    """The spans as a pool's row has them."""
    return orjson.dumps([span.text for span in spans]).decode()


# The text hardly ever changes, and every allocation asks.
@lru_cache(maxsize=256)
def decode_spans(text: str) -> tuple[Span, ...]:
    """The inverse of `encode_spans`."""
    return tuple(parse(one, "excluded") for one in orjson.loads(text))


def _single(address: Address) -> Span:
    return Span(family_of(address), int(address), int(address), str(address))


def _range(text: str, field: str) -> Span:
    head, _, tail = text.partition("-")
    first, last = parse_address(head.strip(), field), parse_address(tail.strip(), field)
    if first.version != last.version or int(first) > int(last):
        raise invalid(
            field,
            f"{text!r} is not a range; expected FIRST-LAST of one family, FIRST not above LAST",
            reason="RANGE_INVALID",
            value=text,
        )
    if first == last:
        return _single(first)
    return Span(family_of(first), int(first), int(last), f"{first}-{last}")


def _inside(span: Span, cidrs: Iterable[Network]) -> bool:
    networks = [cidr for cidr in cidrs if cidr.version == span.family]
    spans = ((int(one.network_address), int(one.broadcast_address)) for one in networks)
    return any(first <= span.first and span.last <= last for first, last in merged(spans))


def excluding(address: Address, spans: Iterable[Span]) -> str | None:
    """The text of the first of `spans` that has `address`; None when none has it."""
    number = int(address)
    return next(
        (span.text for span in spans if span.family == address.version and span.first <= number <= span.last),
        None,
    )

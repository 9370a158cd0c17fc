"""What `fimbria flows` asks the loaders for, from what the user wrote."""

from __future__ import annotations

import ipaddress
import itertools
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from cli.errors import BadInput

if TYPE_CHECKING:
    from fimbria.loader.v1 import loader_pb2

VERDICTS = {
    "denied": "DROPPED",
    "dropped": "DROPPED",
    "allowed": "FORWARDED",
    "forwarded": "FORWARDED",
    "audit": "AUDIT",
}
TYPES = ("drop", "verdict", "trace")
DEFAULT_LAST = 20
_UNITS = {"s": 1, "m": 60, "h": 3600}
_END = "NS/NAME, NS/, an address or a prefix"


@dataclass(frozen=True)
class Wanted:
    """The options of the command, as they were given. Options of different kinds have all to match, of those
    of one kind one has to; of the ``not_`` ones none may.
    """

    follow: bool = False
    last: int | None = None
    since: str | None = None
    verdict: str | None = None
    types: tuple[str, ...] = ()
    family: str | None = None
    sources: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    not_sources: tuple[str, ...] = ()
    not_targets: tuple[str, ...] = ()
    ips: tuple[str, ...] = ()
    port: str | None = None


class _Place(NamedTuple):
    """Where a packet comes from or goes to: a pod, or an address."""

    pod: str = ""
    ip: str = ""


def request_of(wanted: Wanted) -> loader_pb2.GetFlowsRequest:
    """The request. Raises BadInput with the option and what it should be."""
    from fimbria.loader.v1 import loader_pb2

    if "trace" in wanted.types and not wanted.follow:
        raise BadInput(
            "--type trace needs --follow: traces are made while somebody follows, and not remembered"
        )
    request = loader_pb2.GetFlowsRequest(
        allow=_allowed(wanted),
        deny=[
            *(_ends(_place("--not-from", text), _Place()) for text in wanted.not_sources),
            *(_ends(_Place(), _place("--not-to", text)) for text in wanted.not_targets),
        ],
        last=wanted.last or (0 if wanted.follow else DEFAULT_LAST),
        follow=wanted.follow,
        trace="trace" in wanted.types,
    )
    if wanted.since is not None:
        match = re.fullmatch(r"(\d+)([smh])", wanted.since)
        if match is None:
            raise BadInput(
                f"--since {wanted.since!r} is not valid: expected a number and s, m or h, for example 5m"
            )
        request.since.FromNanoseconds(time.time_ns() - int(match[1]) * _UNITS[match[2]] * 1_000_000_000)
    return request


def _allowed(wanted: Wanted) -> list[loader_pb2.FlowFilter]:
    """Every combination of what there are several of, since a flow has to match one filter as a whole."""
    from fimbria.loader.v1 import loader_pb2

    from cli.lab.syntax import parse_port
    from cli.protocols import protocol_number

    sources = [_place("--from", text) for text in wanted.sources] or [_Place()]
    targets = [_place("--to", text) for text in wanted.targets] or [_Place()]
    ips = [_address("--ip", text) for text in wanted.ips] or [""]
    found = []
    for source, target, ip, kind in itertools.product(sources, targets, ips, wanted.types or ("",)):
        item = _ends(source, target)
        item.ip = ip
        if kind:
            item.type = loader_pb2.FlowType.Value(f"FLOW_TYPE_{kind.upper()}")
        if wanted.verdict:
            item.verdict = loader_pb2.FlowVerdict.Value(f"FLOW_VERDICT_{VERDICTS[wanted.verdict]}")
        if wanted.family:
            item.family = int(wanted.family)
        if wanted.port:
            number, protocol = parse_port(wanted.port)
            item.destination_port = number
            if "/" in wanted.port:
                item.protocol = protocol_number(protocol)
        found.append(item)
    # One that says nothing matches all, as none does.
    return [] if found == [loader_pb2.FlowFilter()] else found


def _ends(source: _Place, target: _Place) -> loader_pb2.FlowFilter:
    from fimbria.loader.v1 import loader_pb2

    return loader_pb2.FlowFilter(
        source_pod=source.pod, source_ip=source.ip, destination_pod=target.pod, destination_ip=target.ip
    )


def _place(option: str, text: str) -> _Place:
    head, slash, _ = text.partition("/")
    try:
        ipaddress.ip_address(head)
    except ValueError:
        # A prefix has a slash too, but no namespace looks like an address.
        if not slash or not head:
            raise BadInput(f"{option} {text!r} is not valid: expected {_END}") from None
        return _Place(pod=text)
    return _Place(ip=_address(option, text, _END))


def _address(option: str, text: str, expected: str = "an address or a prefix") -> str:
    """In canonical text, without the bits beyond a prefix's length."""
    try:
        found = ipaddress.ip_network(text, strict=False) if "/" in text else ipaddress.ip_address(text)
        if "%" in text:
            raise ValueError(text)
    except ValueError:
        raise BadInput(f"{option} {text!r} is not valid: expected {expected}") from None
    return str(found)

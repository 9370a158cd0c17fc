"""Probes between pods, nodes and the world outside: allowed or denied, and why."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.errors import BadInput, CliError
from cli.lab import netns, underlay
from cli.lab.paths import netns_path
from cli.lab.pods import Pod
from cli.lab.prober import DEFAULT_TIMEOUT, Attempt, Outcome
from cli.lab.prober import probe_many as attempt_many
from cli.lab.syntax import TYPED, parse_pod

if TYPE_CHECKING:
    from fimbria.policy.v1 import policy_pb2

    from cli.lab.lab import Lab

# Given to the world outside for as long as a probe from or to them lasts (RFC 5737, RFC 2544, RFC 3849).
OUTSIDE = tuple(
    ipaddress.ip_network(text)
    for text in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "198.18.0.0/15", "2001:db8::/32")
)
# The node of the other end, and another one.
HOST = "@host"
REMOTE_NODE = "@remote-node"
_RELATIVE = (HOST, REMOTE_NODE)
# The host that has no route to pods.
OUTSIDE_HOST = "@outside"
# How long the loaders may take to tell about a packet that has been seen.
FLOW_WAIT = 0.5
ADDRESS_WAIT = 5.0


@dataclass(frozen=True)
class End:
    """One end of a probe."""

    text: str
    address: str
    netns: Path | None
    """Where it is; None for an address that is not the lab's."""
    node: str = ""
    pod: Pod | None = None
    outside: bool = False
    reserved: str = ""
    """Name of the reserved identity that it has; to be asked about, not to be sent to."""


@dataclass(frozen=True)
class ProbeResult:
    """What became of one connection, and what the datapath and the policy service say about it."""

    source: str
    target: str
    port: int
    protocol: str
    allowed: bool
    how: str
    seconds: float
    source_ip: str
    source_port: int
    target_ip: str
    reason: str = ""
    rule: str = ""
    direction: str = ""
    node: str = ""
    flows: list[dict[str, Any]] = field(default_factory=list)
    explain: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        return "allowed" if self.allowed else "denied"

    def document(self) -> dict[str, Any]:
        """The result as JSON."""
        told = asdict(self)
        return {"from": told.pop("source"), "to": told.pop("target"), "verdict": self.verdict, **told}


class Ends:
    """Resolves what the user wrote to the ends of probes of one family, 4 or 6. None is that of the address
    that one of the ends is, else 4.
    """

    def __init__(self, lab: Lab, family: int | None = None) -> None:
        self._lab = lab
        self._nodes = lab.nodes
        self._families = lab.network.families
        self._asked = family
        self._pods = {str(pod.ref): pod for pod in lab.runtime.store.all() if pod.state == "ready"}
        self._by_ip = {ip: pod for pod in self._pods.values() for ip in pod.ips}

    def pair(self, source: str, target: str) -> tuple[End, End]:
        """Both ends. BadInput for what is no end, CliError (POD_NOT_FOUND) for a pod that is not there."""
        family = self._family(source, target)
        first = None if source in _RELATIVE else self._end(source, "FROM", family)
        second = None if target in _RELATIVE else self._end(target, "TO", family)
        first = first or self._relative(source, second, family)
        second = second or self._relative(target, first, family)
        if first.netns is None:
            ranges = ", ".join(str(network) for network in OUTSIDE)
            raise BadInput(f"FROM {source!r} is not valid: no end of the lab, and not in {ranges}")
        return first, second

    def _family(self, source: str, target: str) -> int:
        named = {address.version for address in (_address(source), _address(target)) if address is not None}
        if len(named | ({self._asked} - {None})) > 1:
            asked = "" if self._asked is None else f", and --family is {self._asked}"
            raise BadInput(f"FROM {source!r} and TO {target!r} are not of one family{asked}")
        family = self._asked or next(iter(named), 4)
        if family not in self._families:
            raise BadInput(f"the lab has no IPv{family}", reason="FAMILY_MISSING")
        return family

    def _relative(self, text: str, other: End | None, family: int) -> End:
        meant = "the node of the other end" if text == HOST else "another node than the other end's"
        if other is None or not other.node:
            raise BadInput(f"{text} is {meant}: the other end has to be a pod")
        node = other.node
        if text == REMOTE_NODE:
            node = next((each for each in self._nodes if each != other.node), "")
            if not node:
                raise BadInput(f"{text} is {meant}: the lab has no other node")
        return self._of_node(text, node, family)

    def _of_node(self, text: str, node: str, family: int) -> End:
        path = netns_path(self._lab.paths.node_netns(node))
        return End(text, underlay.node_address(node, family), path, node=node)

    def _end(self, text: str, field_name: str, family: int) -> End:
        if "/" in text:
            ref = parse_pod(text, field_name)
            pod = self._pods.get(str(ref)) or self._lab.runtime.store.get(ref)
            return End(text, _pod_address(pod, family), pod.netns_path, node=pod.node, pod=pod)
        outside_host = underlay.OUTSIDE_HOST[family]
        if text == OUTSIDE_HOST:
            text = outside_host
        address = _address(text)
        if address is None:
            raise BadInput(
                f"{field_name} {text!r} is not valid: expected NAMESPACE/NAME, @host, @remote-node, @outside "
                "or an address"
            )
        known = str(address)
        if found := self._by_ip.get(known):
            return End(text, known, found.netns_path, node=found.node, pod=found)
        for node in self._nodes:
            if underlay.node_address(node, family) == known:
                return self._of_node(text, node, family)
        if known == outside_host:
            return End(text, known, netns_path(self._lab.paths.outside_netns))
        outside = any(address in network for network in OUTSIDE)
        if outside or known == underlay.GATEWAY[family]:
            return End(text, known, netns_path(self._lab.paths.underlay_netns), outside=outside)
        return End(text, known, None)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _pod_address(pod: Pod, family: int) -> str:
    for ip in pod.ips:
        if ipaddress.ip_address(ip).version == family:
            return ip
    raise CliError(f"pod {pod.ref} has no IPv{family} address", reason="FAMILY_MISSING")


@contextlib.contextmanager
def _present(lab: Lab, ends: Iterable[End]) -> Iterator[None]:
    """Give the addresses outside the cluster to the world's namespace for the duration of the block."""
    name = lab.paths.underlay_netns
    addresses = sorted({end.address for end in ends if end.outside})
    added = []
    for address in addresses:
        with contextlib.suppress(CliError):
            # Another probe may have added it, and will take it away.
            prefix = f"{address}/{ipaddress.ip_address(address).max_prefixlen}"
            # Without looking for duplicates, which takes the kernel a moment even where it does not look.
            netns.ip("addr", "add", prefix, "dev", "lo", *(["nodad"] if ":" in address else []), netns=name)
            added.append(prefix)
    try:
        _await_local(name, {address for address in addresses if ":" in address})
        yield
    finally:
        for prefix in added:
            netns.ip("addr", "del", prefix, "dev", "lo", netns=name)


def _await_local(name: str, addresses: set[str]) -> None:
    """Wait until a namespace takes what is for these IPv6 addresses to be for it: the kernel comes to that a
    moment after the address is there.
    """
    deadline = time.monotonic() + ADDRESS_WAIT
    while addresses:
        routes = json.loads(netns.ip("-6", "-j", "route", "show", "table", "local", netns=name) or "[]")
        addresses -= {route["dst"] for route in routes if route.get("type", "local") == "local"}
        if addresses and time.monotonic() > deadline:
            raise CliError(
                f"{name} does not receive for {', '.join(sorted(addresses))} within {ADDRESS_WAIT:g} s",
                reason="NETWORK_SETUP_FAILED",
            )


def _attempt(source: End, target: End, port: int, protocol: str) -> Attempt:
    assert source.netns is not None
    if protocol in TYPED:
        if (protocol == "ICMPV6") != (":" in target.address):
            raise BadInput(f"{protocol} is not of the family of {target.address}: IPv4 has ICMP, IPv6 ICMPv6")
        protocol = "ICMP"
    # A node sends from the address that its routes choose, everybody else from the one that was named.
    own = "" if source.node and source.pod is None else source.address
    return Attempt(source.netns, target.address, port, protocol, target.netns, own)


def probe_many(
    lab: Lab,
    probes: Sequence[tuple[str, str, int, str]],
    *,
    family: int | None = None,
    timeout: float | None = None,
) -> list[ProbeResult]:
    """Try all `probes` at once; the verdicts, without reasons."""
    ends = Ends(lab, family)
    pairs = [ends.pair(source, target) for source, target, _, _ in probes]
    attempts = [
        _attempt(first, second, port, protocol.upper())
        for (first, second), (_, _, port, protocol) in zip(pairs, probes, strict=True)
    ]
    with _present(lab, [end for pair in pairs for end in pair]):
        outcomes = attempt_many(attempts, DEFAULT_TIMEOUT if timeout is None else timeout)
    return [
        _result(pair, probe, outcome) for pair, probe, outcome in zip(pairs, probes, outcomes, strict=True)
    ]


def _result(pair: tuple[End, End], probe: tuple[str, str, int, str], outcome: Outcome) -> ProbeResult:
    source, target, port, protocol = probe
    return ProbeResult(
        source=source,
        target=target,
        port=port,
        protocol=protocol.upper(),
        allowed=outcome.reached,
        how=outcome.how,
        seconds=outcome.seconds,
        source_ip=pair[0].address,
        source_port=outcome.source_port,
        target_ip=pair[1].address,
    )


def probe(
    lab: Lab,
    source: str,
    target: str,
    port: int,
    protocol: str,
    *,
    family: int | None = None,
    timeout: float | None = None,
) -> ProbeResult:
    """Try one connection, and ask the loaders and the policy service why it went as it did."""
    pair = Ends(lab, family).pair(source, target)
    (result,) = probe_many(lab, [(source, target, port, protocol)], family=family, timeout=timeout)
    notes: list[str] = []
    explain = _explain(lab, pair, result, notes)
    audited = explain is not None and any(explain[way]["audited"] for way in ("egress", "ingress"))
    flows = _flows(lab, pair, result, notes, audited=audited)
    deciding = _deciding(flows, result.allowed)
    notes += _audits(flows)
    if explain is not None and explain["allowed"] != result.allowed:
        said = "allowed" if explain["allowed"] else "denied"
        notes.append(f"the policies say {said}: something else decided, or they have just changed")
    fields = asdict(result) | {"flows": flows, "explain": explain, "notes": notes}
    if deciding is not None:
        fields |= {
            "reason": deciding["reason"],
            "rule": deciding["rule"],
            "direction": deciding["direction"],
            "node": deciding["node"],
        }
    return ProbeResult(**fields)


def _deciding(flows: list[dict[str, Any]], allowed: bool) -> dict[str, Any] | None:
    """The flow that says why: the drop of a denied probe; the last verdict with a rule of an allowed one."""
    wanted = "forwarded" if allowed else "dropped"
    matching = [flow for flow in flows if flow["verdict"] == wanted]
    with_rule = [flow for flow in matching if flow["rule"]]
    return (with_rule or matching)[-1] if matching else None


def _audits(flows: list[dict[str, Any]]) -> list[str]:
    """What audit mode has to say of what passed, once for each direction."""
    told = {}
    for flow in flows:
        if flow["verdict"] == "audit":
            way, why = flow["direction"], flow["rule"] or flow["reason"]
            told[way] = f"audit: {why} would have denied its {way} ({flow['node']} let it pass)"
    return [told[direction] for direction in sorted(told)]


def _flows(
    lab: Lab, pair: tuple[End, End], result: ProbeResult, notes: list[str], *, audited: bool
) -> list[dict[str, Any]]:
    """What the loaders at both ends saw of the connection, in order of time."""
    from cli.flow import connection_flows

    nodes = sorted({end.node for end in pair if end.node})
    # What a port is to others is an identifier to ICMP, the same both ways.
    port = result.source_port if result.protocol in TYPED else result.port
    deadline = time.monotonic() + FLOW_WAIT
    while True:
        found: list[dict[str, Any]] = []
        failed = []
        for node in nodes:
            try:
                found += connection_flows(
                    lab.cluster, node, result.target_ip, port, result.protocol, result.source_port
                )
            except CliError as error:
                failed.append(f"the loader of {node} cannot say what it saw: {error.message}")
        # A denied connection has been dropped by somebody; an allowed one may have met no policy, unless one
        # in audit mode is known to have looked at it.
        done = bool(_audits(found)) if audited else result.allowed or _deciding(found, result.allowed)
        if done or failed or time.monotonic() > deadline:
            notes += failed
            return sorted(found, key=lambda flow: str(flow["time"]))
        time.sleep(0.02)


def _explain(lab: Lab, pair: tuple[End, End], result: ProbeResult, notes: list[str]) -> dict[str, Any] | None:
    """What the policy service says about the two ends; None when it cannot be asked."""
    try:
        return explain(lab, pair, result.protocol, result.port)
    except CliError as error:
        notes.append(f"the policy service cannot explain it: {error.message}")
        return None


def explain(lab: Lab, pair: tuple[End, End], protocol: str, port: int) -> dict[str, Any]:
    """What the policy service says about a connection between two ends. CliError when it cannot be asked.

    A node is itself where its own policies are asked and its own pods', and a remote node to all others; so
    are to a node the pods of another that are masqueraded.
    """
    from cli.explain import explain as ask

    source, target = pair
    own = _peer(lab, source), _peer(lab, target)
    seen = _peer(lab, source, by=target), _peer(lab, target, by=source)
    told = ask(lab.cluster, own[0], seen[1], protocol, port)
    if own == seen:
        return told
    ingress = ask(lab.cluster, seen[0], own[1], protocol, port)
    allowed = told["egress"]["allowed"] and ingress["ingress"]["allowed"]
    return {**told, "ingress": ingress["ingress"], "allowed": allowed}


def _peer(lab: Lab, end: End, *, by: End | None = None) -> policy_pb2.Peer:
    """An end as the policy service is told of it: by itself, or as it is to the other end."""
    from cli.explain import peer

    elsewhere = by is not None and by.node not in ("", end.node)
    # What is sent to a node is not tunnelled; where pods' addresses are not routed it has the node's.
    masquerades = lab.network.masquerade and lab.network.routing == "tunnel"
    masqueraded = masquerades and by is not None and by.pod is None
    if end.node and elsewhere and (end.pod is None or masqueraded):
        told = peer(["reserved:remote-node"])
    elif end.pod is not None:
        told = peer(lab.runtime.label_strings(end.pod), end.pod.ports)
    elif end.node:
        told = peer(["reserved:host", *lab.network.node_labels(end.node)])
    else:
        told = peer([f"reserved:{end.reserved}"] if end.reserved else [])
    told.address = end.address
    return told

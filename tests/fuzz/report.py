"""A mismatch as text."""

from __future__ import annotations

import re
from ast import literal_eval
from ipaddress import ip_address

from tests.fuzz import build
from tests.fuzz.model.steps import Input
from tests.fuzz.session import Mismatch, Step


def report(mismatch: Mismatch) -> str:
    """Seed, steps, the packet in hex and parsed, both decisions."""
    lines = [
        f"--- seed {mismatch.seed}, variant {mismatch.variant}, packet {mismatch.number} of the episode"
        f"{', BREACH' if mismatch.is_breach else ''}",
        *(f"{number:4} {_step(step)}" for number, step in enumerate(mismatch.steps, 1)),
    ]
    last = mismatch.steps[-1]
    if isinstance(last, Input):
        lines.append(f"packet {last.frame.hex()}")
    lines.append(f"model  {mismatch.decision}")
    return "\n".join(lines + mismatch.differences)


def _step(step: Step) -> str:
    if not isinstance(step, Input):
        return _readable(repr(step))
    extras = [f"on {step.ifindex}", f"in by {step.ingress}", f"mark {step.mark:#x}"]
    extras += (
        [f"VNI {step.vni}"] * (step.vni is not None)
        + ["VLAN tag"] * step.vlan
        + [f"GSO {step.gso}"] * (step.gso > 0)
    )
    return f"{step.program} {', '.join(extras)}: {build.describe(step.frame)}"


def _readable(text: str) -> str:
    """Addresses, which are bytes, as addresses."""

    def replaced(match: re.Match[str]) -> str:
        data = literal_eval(match[0])
        return str(ip_address(data)) if len(data) in (4, 16) else data.hex(":")

    return re.sub(r"""b'(?:[^'\\]|\\.)*'|b"(?:[^"\\]|\\.)*\"""", replaced, text)

"""How fast a pod may send: the ``bandwidth`` capability of the CNI conventions.

A runtime that finds ``"capabilities": {"bandwidth": true}`` in the configuration says what a pod asks for::

    "runtimeConfig": {"bandwidth": {"egressRate": 10000000, "egressBurst": 1000000}}

Rates are in bits per second, bursts in bits. The datapath spaces a pod's packets in time, so that there is no
bucket which a burst could empty: the burst is checked and has no effect. What a pod receives is not limited.

Capitals do not count in the names, as they do not for plugins in Go: containerd says ``EgressRate``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from services.loader.cni.errors import CniCode, CniError

_FIELD = "runtimeConfig.bandwidth"
_MEMBERS = ("ingressRate", "ingressBurst", "egressRate", "egressBurst")
_BY_LOWER_CASE = {name.lower(): name for name in _MEMBERS}
# 100 Tbit/s: beyond every device, and well within what the datapath counts with.
_MOST_BITS = 10**14


def parse_rate(config: Mapping[str, Any]) -> int:
    """What the pod may send, in bytes/s; 0 when nothing is asked for.

    Raises CniError 7 for what is no rate, 2 for a limit of what the pod receives.
    """
    runtime = config.get("runtimeConfig")
    bandwidth = runtime.get("bandwidth") if isinstance(runtime, dict) else None
    if bandwidth is None:
        return 0
    if not isinstance(bandwidth, dict):
        raise _invalid(_FIELD, f"got {bandwidth!r}; expected an object")
    for name in bandwidth:
        if name.lower() not in _BY_LOWER_CASE:
            raise _invalid(f"{_FIELD}.{name}", f"unknown; expected {', '.join(_MEMBERS)}")
    bandwidth = {_BY_LOWER_CASE[name.lower()]: value for name, value in bandwidth.items()}
    bits = {name: _bits(bandwidth, name) for name in _MEMBERS}
    for name in ("ingressRate", "ingressBurst"):
        if bits[name]:
            raise CniError(
                CniCode.UNSUPPORTED_FIELD,
                f"network configuration: unsupported field {_FIELD}.{name} with value {bits[name]}",
                "what a pod receives is not limited; remove it, or chain a plugin that does this",
            )
    if bits["egressBurst"] and not bits["egressRate"]:
        raise _invalid(f"{_FIELD}.egressBurst", f"got {bits['egressBurst']} without an egressRate")
    # Rounded up, so that the smallest rate is not taken for none.
    return -(-bits["egressRate"] // 8)


def _bits(bandwidth: Mapping[str, Any], name: str) -> int:
    value = bandwidth.get(name)
    if value is None:
        return 0
    # True is an int to Python, not to whoever wrote the configuration.
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MOST_BITS:
        raise _invalid(
            f"{_FIELD}.{name}", f"got {value!r}; expected a whole number of bits from 0 to {_MOST_BITS}"
        )
    return value


def _invalid(field: str, problem: str) -> CniError:
    return CniError(CniCode.INVALID_CONFIG, f"network configuration: {field}: {problem}", field)

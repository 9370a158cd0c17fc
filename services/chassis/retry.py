"""How calls are balanced and repeated, as gRPC's service configuration. Light to import: the CLI does."""

from __future__ import annotations

import json
from typing import Any, Final

RETRY_POLICY: Final[dict[str, Any]] = {
    "maxAttempts": 4,
    "initialBackoff": "0.05s",
    "maxBackoff": "1s",
    "backoffMultiplier": 3,
    "retryableStatusCodes": ["UNAVAILABLE"],
}


# A replica is asked whether it serves, by one watch of its health; one that does not (it drains, it has lost
# its store) gets no calls. One that has no health service counts as serving.
HEALTH_CHECK: Final[dict[str, Any]] = {"serviceName": ""}


def service_config(*, retry: bool = True, target: str = "") -> str:
    """The value of the channel option ``grpc.service_config``: round robin over a target's addresses.

    Where the ``target`` may have several addresses, calls go to those that serve, in turn: with a single one
    there is nothing to choose, and a watch of its health would be in vain. With ``retry``, calls that failed
    with UNAVAILABLE are repeated, most likely at another address: all of Fimbria's methods are idempotent.
    """
    method: dict[str, Any] = {"name": [{}]}
    if retry:
        method["retryPolicy"] = RETRY_POLICY
    config: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}], "methodConfig": [method]}
    if "," in target or target.startswith("dns:"):
        config["healthCheckConfig"] = HEALTH_CHECK
    return json.dumps(config)

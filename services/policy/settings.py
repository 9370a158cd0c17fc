# SPDX-License-Identifier: Apache-2.0
"""What the policy process can be told."""

from __future__ import annotations

from dataclasses import dataclass

from services.chassis.settings import CommonSettings, setting


@dataclass(frozen=True)
class PolicySettings(CommonSettings):
    """The common settings, where the identities come from, and how much history is kept."""

    database_url: str = setting(
        "sqlite:////var/lib/fimbria/policy.db",
        help="The service's store: sqlite:///RELATIVE/PATH or sqlite:////ABSOLUTE/PATH.",
    )
    identity_target: str = setting(
        "dns:///identity:4000",
        help="gRPC target of the identity service: dns:///HOST:PORT, unix:/PATH.",
    )
    feed_keep: int = setting(
        10_000, help="How many of the newest policy changes are kept in the store.", minimum=1
    )

# SPDX-License-Identifier: Apache-2.0
"""What the policy process can be told."""

from __future__ import annotations

from dataclasses import dataclass

from services.chassis.settings import CommonSettings, setting


@dataclass(frozen=True)
class PolicySettings(CommonSettings):
    """The common settings, where the identities come from, and how much history is kept."""

    listen: tuple[str, ...] = setting(
        ("127.0.0.1:4003",),
        help="Addresses to serve on, comma separated: HOST:PORT (port 0: any free one), unix:/PATH.",
    )
    database_url: str = setting(
        "sqlite:////var/lib/fimbria/policy.db",
        help="The service's store: sqlite:////ABSOLUTE/PATH, sqlite:///RELATIVE/PATH, or "
        "postgresql://USER@HOST/DATABASE (docs/storage.md).",
    )
    identity_target: str = setting(
        "ipv4:127.0.0.1:4002",
        help="gRPC target of the identity service.",
    )
    feed_keep: int = setting(
        10_000, help="How many of the newest policy changes are kept in the store.", minimum=1
    )

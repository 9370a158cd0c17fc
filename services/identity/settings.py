"""What the identity process can be told."""

from __future__ import annotations

from dataclasses import dataclass

from services.chassis.settings import CommonSettings, setting


@dataclass(frozen=True)
class IdentitySettings(CommonSettings):
    """The common settings, leases and garbage collection, and how much history watches can resume in."""

    listen: tuple[str, ...] = setting(
        ("127.0.0.1:4002",),
        help="Addresses to serve on, comma separated: HOST:PORT (port 0: any free one), unix:/PATH.",
    )
    database_url: str = setting(
        "sqlite:////var/lib/fimbria/identity.db",
        help="The service's store: sqlite:////ABSOLUTE/PATH, sqlite:///RELATIVE/PATH, or "
        "postgresql://USER@HOST/DATABASE (docs/storage.md).",
    )
    feed_keep: int = setting(
        100_000, help="How many of the newest changes are kept for watches to resume from.", minimum=1
    )
    identity_lease_seconds: float = setting(
        900.0,
        help="For how long a holder's report of the identities that it uses is good.",
        minimum=1,
    )
    identity_grace_seconds: float = setting(
        300.0,
        help="For how long nobody may have used an identity before it is collected. 0: none is collected.",
        minimum=0,
    )

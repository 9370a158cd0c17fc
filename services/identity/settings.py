"""What the identity process can be told."""

from __future__ import annotations

from dataclasses import dataclass

from services.chassis.settings import CommonSettings, setting


@dataclass(frozen=True)
class IdentitySettings(CommonSettings):
    """The common settings, and how much history watches can resume in."""

    listen: tuple[str, ...] = setting(
        ("127.0.0.1:4002",),
        help="Addresses to serve on, comma separated: HOST:PORT (port 0: any free one), unix:/PATH.",
    )
    database_url: str = setting(
        "sqlite:////var/lib/fimbria/identity.db",
        help="The service's store: sqlite:///RELATIVE/PATH or sqlite:////ABSOLUTE/PATH.",
    )
    feed_keep: int = setting(
        100_000, help="How many of the newest changes are kept for watches to resume from.", minimum=1
    )

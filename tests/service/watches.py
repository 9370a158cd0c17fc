"""Reading watches: progress messages, which hold no events, may come at any time."""

from __future__ import annotations

from collections.abc import AsyncIterable
from typing import Any


async def next_events(watch: AsyncIterable[Any]) -> Any:
    """The next message of a watch that holds events."""
    async for message in watch:
        if message.events:
            return message
    raise AssertionError("the watch ended")

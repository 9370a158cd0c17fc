"""Paging of lists: ``page_size`` 1..1000 (0: 100), and an opaque ``page_token`` that names where to go on.

A token holds the key of the last item that was sent, not a position: items that come or go between two pages
neither repeat nor hide others. It also holds what list it belongs to, so that a token of another list, or of
the same list with another filter, is refused rather than misread.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, NoReturn, TypeVar

import orjson

from services.chassis.errors import FieldViolation, InvalidArgument

DEFAULT_SIZE: Final = 100
MAX_SIZE: Final = 1000

T = TypeVar("T")
KeyPart = str | int
Key = tuple[KeyPart, ...]


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page; ``next_page_token`` is empty on the last one."""

    items: tuple[T, ...]
    next_page_token: str = ""


@dataclass(frozen=True, slots=True)
class PageRequest:
    """A parsed request for a page: read up to ``limit`` items whose key is greater than ``after``.

    ``limit`` is one more than fits on the page, which tells whether there is another.
    """

    size: int
    after: Key | None
    scope: str

    @classmethod
    def parse(cls, page_size: int, page_token: str, *, scope: str = "") -> PageRequest:
        """Checks both fields. ``scope`` names the list and its filters; a token fits its own scope only.

        Raises InvalidArgument (PAGE_INVALID) naming ``page_size`` or ``page_token``.
        """
        if not 0 <= page_size <= MAX_SIZE:
            _refuse("page_size", str(page_size), f"1 to {MAX_SIZE}, or 0 for {DEFAULT_SIZE}")
        after = _decode(page_token, scope) if page_token else None
        return cls(page_size or DEFAULT_SIZE, after, scope)

    @property
    def limit(self) -> int:
        """How many items to read."""
        return self.size + 1

    def page(self, items: Sequence[T], key: Callable[[T], Key | KeyPart]) -> Page[T]:
        """The page from up to ``limit`` items in ascending order of ``key``."""
        if len(items) <= self.size:
            return Page(tuple(items))
        kept = tuple(items[: self.size])
        return Page(kept, _encode(_as_key(key(kept[-1])), self.scope))


def page(
    items: Iterable[T],
    *,
    key: Callable[[T], Key | KeyPart],
    page_size: int,
    page_token: str,
    scope: str = "",
) -> Page[T]:
    """One page of items that are all in memory, in ascending order of ``key``, which must be unique."""
    request = PageRequest.parse(page_size, page_token, scope=scope)
    keyed = sorted(((_as_key(key(item)), item) for item in items), key=lambda pair: pair[0])
    if request.after is not None:
        after = request.after
        keyed = [pair for pair in keyed if pair[0] > after]
    return request.page([item for _, item in keyed[: request.limit]], key)


def _as_key(key: Key | KeyPart) -> Key:
    return key if isinstance(key, tuple) else (key,)


def _encode(key: Key, scope: str) -> str:
    body = orjson.dumps(list(key))
    return base64.urlsafe_b64encode(_seal(body, scope) + body).decode().rstrip("=")


def _decode(token: str, scope: str) -> Key:
    try:
        raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        parts = orjson.loads(raw[4:])
    except (binascii.Error, ValueError):
        _refuse("page_token", token, "the next_page_token of an earlier answer")
    if raw[:4] != _seal(raw[4:], scope) or not isinstance(parts, list):
        _refuse("page_token", token, "the next_page_token of an earlier answer to the same request")
    return tuple(parts)


def _seal(body: bytes, scope: str) -> bytes:
    """Tells a token of another list, or a mistyped one, from a good one. It keeps no secret."""
    return hashlib.blake2s(scope.encode() + b"\0" + body, digest_size=4).digest()


def _refuse(field: str, value: str, expected: str) -> NoReturn:
    shown = value if len(value) <= 64 else value[:64] + "…"
    raise InvalidArgument(
        f"{field} is {shown!r}; expected {expected}",
        reason="PAGE_INVALID",
        metadata={"field": field, "value": shown},
        violations=[FieldViolation(field, f"is {shown!r}; expected {expected}")],
    )

# SPDX-License-Identifier: Apache-2.0
"""Who is asked for a prefix's number, and what comes of a refusal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import grpc
import pytest
from fimbria.identity.v1 import identity_pb2

from services.chassis.errors import (
    STATUS_DETAILS_KEY,
    FimbriaError,
    ResourceExhausted,
    Unavailable,
    rich_status,
)
from services.policy import prefix_numbers
from services.policy.prefix_numbers import PrefixNumbers, is_prefix_number


class Identities:
    """A stub that numbers prefixes from 0xFF0000 on, or fails."""

    def __init__(self, failure: FimbriaError | None = None) -> None:
        self.asked: list[list[str]] = []
        self._failure = failure

    async def ResolvePrefixes(
        self, request: identity_pb2.ResolvePrefixesRequest, timeout: float
    ) -> identity_pb2.ResolvePrefixesResponse:
        self.asked.append(list(request.prefixes))
        if self._failure is not None:
            details = grpc.aio.Metadata((STATUS_DETAILS_KEY, rich_status(self._failure).SerializeToString()))
            raise grpc.aio.AioRpcError(self._failure.code, grpc.aio.Metadata(), details, "no")
        return identity_pb2.ResolvePrefixesResponse(
            identities=[identity_pb2.Identity(id=0xFF0000 + at) for at in range(len(request.prefixes))]
        )


def numbers(stub: Any, taken: Mapping[int, str] | None = None) -> PrefixNumbers:
    known = {"10.0.0.0/8": 0xFF0007}
    return PrefixNumbers(stub, known.get, dict(taken or {}).get, "unix:/nowhere")


async def test_only_new_prefixes_are_asked_for_and_each_once() -> None:
    stub = Identities()
    wanted = ["10.0.0.0/8", "192.0.2.0/24", "0.0.0.0/0", "::/0", "192.0.2.0/24", "198.18.0.0/15"]
    assert await numbers(stub).of(wanted) == {
        "10.0.0.0/8": 0xFF0007,
        "0.0.0.0/0": 9,
        "::/0": 10,
        "192.0.2.0/24": 0xFF0000,
        "198.18.0.0/15": 0xFF0001,
    }
    assert stub.asked == [["192.0.2.0/24", "198.18.0.0/15"]]


async def test_nobody_is_asked_for_what_is_known() -> None:
    stub = Identities()
    assert await numbers(stub).of(["10.0.0.0/8", "::/0"]) == {"10.0.0.0/8": 0xFF0007, "::/0": 10}
    assert stub.asked == []


async def test_many_are_asked_for_in_calls_of_a_legal_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_numbers, "CALL_PREFIXES", 2)
    stub = Identities()
    await numbers(stub).of([f"10.{n}.0.0/16" for n in range(5)])
    assert [len(call) for call in stub.asked] == [2, 2, 1]


async def test_an_identity_service_that_is_away_is_told_as_such() -> None:
    stub = Identities(Unavailable("gone", reason="DRAINING"))
    with pytest.raises(Unavailable) as caught:
        await numbers(stub).of(["192.0.2.0/24"])
    assert caught.value.reason == "PREFIXES_UNRESOLVED"
    assert caught.value.metadata == {"prefixes": "192.0.2.0/24"}


async def test_a_number_that_policies_have_for_another_prefix_is_not_taken() -> None:
    with pytest.raises(Unavailable, match=r"which policies have for 198\.18\.0\.0/15 until"):
        await numbers(Identities(), {0xFF0000: "198.18.0.0/15"}).of(["192.0.2.0/24"])
    assert await numbers(Identities(), {0xFF0000: "192.0.2.0/24"}).of(["192.0.2.0/24"]) == {
        "192.0.2.0/24": 0xFF0000
    }


async def test_a_refusal_is_passed_on() -> None:
    stub = Identities(ResourceExhausted("all in use", reason="IDENTITIES_EXHAUSTED"))
    with pytest.raises(ResourceExhausted) as caught:
        await numbers(stub).of(["192.0.2.0/24"])
    assert caught.value.reason == "IDENTITIES_EXHAUSTED"


def test_numbers_of_prefixes_are_told_from_others() -> None:
    assert [is_prefix_number(n) for n in (2, 9, 10, 256, 65535, 0xFEFFFF, 0xFF0000, 0xFFFFFF)] == [
        False,
        True,
        True,
        False,
        False,
        False,
        True,
        True,
    ]

# SPDX-License-Identifier: Apache-2.0
"""The gRPC side of the policy service: requests into domain values and back; nothing is decided here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, TypeAlias

import grpc
from fimbria.policy.v1 import policy_pb2 as pb

from services.chassis.interceptor import call_deadline
from services.chassis.paging import PageRequest, page
from services.chassis.telemetry import inject
from services.policy import problems
from services.policy.convert import (
    applied_message,
    key_message,
    node_message,
    policy_message,
    read_definitions,
    read_key,
    revision_message,
    subscribe_message,
)
from services.policy.distribution import Distributor
from services.policy.enforcement import Enforcement
from services.policy.fields import Violation
from services.policy.groups import literal_prefixes
from services.policy.manifest import (
    Manifest,
    ManifestError,
    parse_definitions,
    parse_manifests,
    parse_refs,
)
from services.policy.node_store import NodeStore
from services.policy.prefix_numbers import PrefixNumbers
from services.policy.questions_api import QuestionsApi
from services.policy.store import PolicyStore
from services.policy.subscription import serve_subscription

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

DEFAULT_WAIT_SECONDS = 30.0
# Time left to answer with what lags, before the call's own deadline cuts the answer off.
ANSWER_SECONDS = 0.1
# Parsing more than this stalls the streams; a thread has the time.
LONG_MANIFESTS = 32 * 1024
MANY_POLICIES = 50


class PolicyApi(QuestionsApi):
    """fimbria.policy.v1.PolicyService."""

    def __init__(
        self,
        store: PolicyStore,
        nodes: NodeStore,
        prefixes: PrefixNumbers,
        distributor: Distributor,
        enforcement: Enforcement,
    ) -> None:
        super().__init__(store, distributor, enforcement)
        self._nodes = nodes
        self._prefixes = prefixes

    async def ApplyPolicies(
        self, request: pb.ApplyPoliciesRequest, context: Context
    ) -> pb.ApplyPoliciesResponse:
        manifests = await _parse(request)
        numbers: dict[str, int] = {}
        if not request.validate_only:
            # Before anything is stored: either all prefixes have numbers, or nothing is done.
            numbers = await self._prefixes.of(
                cidr for each in manifests for cidr in literal_prefixes(each.policy, each.group)
            )
        applied = await self._store.apply(
            manifests,
            numbers,
            source=request.source,
            trace=inject().traceparent,
            dry_run=request.validate_only,
        )
        return pb.ApplyPoliciesResponse(
            policies=map(applied_message, applied.policies), revision=applied.revision
        )

    async def DeletePolicies(
        self, request: pb.DeletePoliciesRequest, context: Context
    ) -> pb.DeletePoliciesResponse:
        refs = [read_key(key, f"keys[{index}]") for index, key in enumerate(request.keys)]
        if request.manifests:
            try:
                refs += parse_refs(request.manifests)
            except ManifestError as error:
                raise problems.manifests_refused(error, done="nothing was deleted") from None
        if not refs:
            raise problems.field_invalid("keys", "", "at least one key, or manifests that name policies")
        deleted, revision = await self._store.delete(dict.fromkeys(refs), trace=inject().traceparent)
        return pb.DeletePoliciesResponse(deleted=map(key_message, deleted), revision=revision)

    async def GetPolicy(self, request: pb.GetPolicyRequest, context: Context) -> pb.Policy:
        return policy_message(await self._store.get(read_key(request.key, "key")))

    async def ListPolicies(
        self, request: pb.ListPoliciesRequest, context: Context
    ) -> pb.ListPoliciesResponse:
        wanted = PageRequest.parse(
            request.page_size, request.page_token, scope=f"policies\0{request.namespace}"
        )
        found, revision = await self._store.page(request.namespace, wanted)
        return pb.ListPoliciesResponse(
            policies=map(policy_message, found.items),
            next_page_token=found.next_page_token,
            revision=revision,
        )

    async def Subscribe(
        self, request_iterator: AsyncIterator[pb.SubscribeRequest], context: Context
    ) -> AsyncIterator[pb.SubscribeResponse]:
        async for message in serve_subscription(request_iterator, self._distributor, self._enforcement):
            yield subscribe_message(message)

    async def WaitEnforced(
        self, request: pb.WaitEnforcedRequest, context: Context
    ) -> pb.WaitEnforcedResponse:
        seconds = DEFAULT_WAIT_SECONDS
        if request.HasField("timeout"):
            seconds = request.timeout.ToNanoseconds() / 1e9
        deadline = call_deadline.get()
        if deadline is not None and deadline.at is not None:
            seconds = min(seconds, deadline.at - time.monotonic() - ANSWER_SECONDS)
        nodes = await self._enforcement.wait(request.revision, request.nodes, max(seconds, 0.0))
        return pb.WaitEnforcedResponse(nodes=map(node_message, nodes))

    async def ListEnforcement(
        self, request: pb.ListEnforcementRequest, context: Context
    ) -> pb.ListEnforcementResponse:
        await self._enforcement.refresh()
        found = page(
            self._enforcement.nodes(),
            key=lambda node: node.name,
            page_size=request.page_size,
            page_token=request.page_token,
            scope="enforcement",
        )
        return pb.ListEnforcementResponse(
            nodes=map(node_message, found.items),
            next_page_token=found.next_page_token,
            revision=revision_message(self._distributor.revision),
        )

    async def ForgetNode(self, request: pb.ForgetNodeRequest, context: Context) -> pb.ForgetNodeResponse:
        await self._enforcement.refresh()
        self._enforcement.forget(request.node)
        self._distributor.forget(request.node)
        await self._nodes.forget(request.node)
        return pb.ForgetNodeResponse()


async def _parse(request: pb.ApplyPoliciesRequest) -> list[Manifest]:
    """All manifests and policies of the request. Raises InvalidArgument that names all that is wrong."""
    if not request.manifests and not request.policies:
        raise problems.field_invalid("manifests", "", "manifests, or policies, or both")
    if len(request.manifests) <= LONG_MANIFESTS and len(request.policies) <= MANY_POLICIES:
        return _parse_both(request)
    return await asyncio.to_thread(_parse_both, request)


def _parse_both(request: pb.ApplyPoliciesRequest) -> list[Manifest]:
    found: list[Manifest] = []
    wrong: list[Violation] = []
    if request.manifests:
        try:
            found += parse_manifests(request.manifests)
        except ManifestError as error:
            wrong += error.violations
    if request.policies:
        try:
            defined = parse_definitions(read_definitions(request.policies))
        except ManifestError as error:
            wrong += (replace(violation, document=problems.DEFINITION) for violation in error.violations)
        else:
            seen = {manifest.policy.ref for manifest in found}
            wrong += (
                Violation(
                    problems.DEFINITION,
                    "",
                    f"policies[{index}].name",
                    f"{manifest.policy.ref} stands in the manifests already, expected it once",
                )
                for index, manifest in enumerate(defined)
                if manifest.policy.ref in seen
            )
            found += defined
    if wrong:
        raise problems.manifests_refused(ManifestError(wrong))
    return found

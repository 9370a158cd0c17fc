# SPDX-License-Identifier: Apache-2.0
"""The questions about policies that the service answers; nothing here changes anything."""

from __future__ import annotations

from typing import Any, TypeAlias

import grpc
from fimbria.policy.v1 import policy_pb2 as pb
from fimbria.policy.v1 import policy_pb2_grpc

from services.policy import problems
from services.policy.convert import read_labels, read_ports, read_protocol, revision_message, verdict_message
from services.policy.distribution import Distributor
from services.policy.enforcement import Enforcement
from services.policy.explain import End, explain
from services.policy.rules import Protocol
from services.policy.selector import Labels
from services.policy.store import PolicyStore

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

# Numbers for label sets that no identity stands for; beyond what identities can have.
_SENDER, _RECEIVER = 1 << 24, (1 << 24) + 1


class QuestionsApi(policy_pb2_grpc.PolicyServiceServicer):
    """The part of fimbria.policy.v1.PolicyService that asks."""

    def __init__(self, store: PolicyStore, distributor: Distributor, enforcement: Enforcement) -> None:
        self._store = store
        self._distributor = distributor
        self._enforcement = enforcement

    async def Explain(self, request: pb.ExplainRequest, context: Context) -> pb.ExplainResponse:
        protocol = read_protocol(request.protocol)
        if not request.port and protocol is not Protocol.ICMP:
            raise problems.field_invalid("port", request.port, "a port from 1 to 65535")
        # "from" is a keyword of Python.
        sender = self._end(getattr(request, "from"), "from", _SENDER)
        receiver = self._end(request.to, "to", _RECEIVER)
        if sender.labels == receiver.labels:
            receiver = End(sender.identity, receiver.labels, receiver.ports)
        policies = (stored.bound for stored in self._distributor.policies.values())
        egress, ingress = explain(policies, sender, receiver, protocol, request.port)
        return pb.ExplainResponse(
            allowed=egress.allowed and ingress.allowed,
            egress=verdict_message(egress),
            ingress=verdict_message(ingress),
            revision=revision_message(self._distributor.revision),
        )

    def _end(self, peer: pb.Peer, field: str, spare: int) -> End:
        """Raises InvalidArgument, NotFound (IDENTITY_NOT_FOUND), Unavailable (IDENTITIES_UNKNOWN)."""
        engine = self._distributor.engine
        declared = frozenset(read_ports(peer.named_ports))
        if peer.labels:
            if peer.identity:
                raise problems.field_invalid(
                    f"{field}.identity", peer.identity, "either labels or an identity"
                )
            labels = Labels(read_labels(peer.labels, field))
            number = engine.number_of(labels)
            known = engine.ports_of(number) if number is not None else frozenset()
            return End(number if number is not None else spare, labels, declared or known)
        if not peer.identity:
            raise problems.field_invalid(field, "", "labels or an identity")
        found = engine.labels(peer.identity)
        if found is None:
            if not self._distributor.identities_known:
                raise problems.identities_unknown()
            raise problems.identity_not_found(peer.identity, f"{field}.identity")
        return End(peer.identity, found, declared or engine.ports_of(peer.identity))

"""How far the cluster has come, as the policy service tells it."""

from __future__ import annotations

import grpc
from fimbria.policy.v1 import policy_pb2 as pb

from services.loader.policy.cluster_barrier import ClusterBarrier


def answer(*nodes: tuple[str, int, bool], token: str = "") -> pb.ListEnforcementResponse:
    return pb.ListEnforcementResponse(
        nodes=[
            pb.NodeEnforcement(node=name, acknowledged=pb.Revision(identity=identity), subscribed=subscribed)
            for name, identity, subscribed in nodes
        ],
        next_page_token=token,
    )


class Service:
    """Gives one answer after the other, the last again and again."""

    def __init__(self, *answers: pb.ListEnforcementResponse | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    async def __call__(self, request: pb.ListEnforcementRequest) -> pb.ListEnforcementResponse:
        self.asked.append(request.page_token)
        found = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(found, Exception):
            raise found
        return found


async def test_it_waits_for_the_slowest_connected_node() -> None:
    service = Service(
        answer(("node-1", 9, True), ("node-2", 4, True)), answer(("node-1", 9, True), ("node-2", 5, True))
    )
    assert await ClusterBarrier(service).wait(5, 5)
    assert len(service.asked) == 2


async def test_it_looks_at_every_page() -> None:
    service = Service(answer(("node-1", 9, True), token="more"), answer(("node-2", 4, True)))
    assert not await ClusterBarrier(service).wait(5, 0.05)
    assert service.asked[:2] == ["", "more"]


async def test_a_node_that_is_away_is_not_waited_for() -> None:
    assert await ClusterBarrier(Service(answer(("node-1", 9, True), ("node-2", 1, False)))).wait(5, 5)


async def test_a_service_that_cannot_say_holds_nobody_up() -> None:
    broken = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata())
    assert not await ClusterBarrier(Service(broken)).wait(5, 5)

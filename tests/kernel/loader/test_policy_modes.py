"""Policy modes on running nodes: they take effect at a start, also on rows that are in the kernel already."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest
from fimbria.loader.v1 import loader_pb2

from tests.kernel.echo import echo_server
from tests.kernel.loader.rig import DUAL_POOL, Pod, Rig, running_rig
from tests.kernel.loader.test_routing_modes import ONLY_CLIENT
from tests.kernel.loader.traffic import connect, reaches, talks

pytestmark = pytest.mark.kernel

Eventually = Callable[[Callable[[], bool]], None]


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with running_rig(tmp_path_factory.mktemp("rig"), nodes=1, cidrs=DUAL_POOL) as made:
        yield made


@pytest.fixture(scope="module")
def pods(rig: Rig) -> Iterator[dict[str, Pod]]:
    made = {name: rig.pod(rig.nodes[0], name, app=name) for name in ("web", "client", "stranger")}
    for pod in made.values():
        pod.add()
    with echo_server(made["web"].namespace, 80):
        rig.apply(ONLY_CLIENT)
        yield made
        rig.remove_policy(ONLY_CLIENT)


def restart(rig: Rig, enforcement: str, *, audit: bool = False) -> None:
    node = rig.nodes[0]
    node.loader.kill()
    node.loader.arguments += [f"--policy-enforcement={enforcement}", f"--policy-audit={str(audit).lower()}"]
    node.loader.start()


def both(check: Callable[..., bool], *args: object) -> list[bool]:
    return [check(*args, ipv6=ipv6) for ipv6 in (False, True)]


def test_never_lets_pass_what_a_policy_denies_and_default_ends_that(
    rig: Rig, pods: dict[str, Pod], eventually: Eventually
) -> None:
    assert both(reaches, pods["stranger"], pods["web"], 80) == [False, False]
    restart(rig, "never")
    assert rig.nodes[0].status().policy_enforcement == loader_pb2.POLICY_ENFORCEMENT_NEVER
    assert both(reaches, pods["stranger"], pods["web"], 80) == [True, True]
    with connect(pods["stranger"], pods["web"], 80) as established:
        assert talks(established)
        restart(rig, "default")
        eventually(lambda: not talks(established))
    eventually(lambda: both(reaches, pods["stranger"], pods["web"], 80) == [False, False])
    assert both(reaches, pods["client"], pods["web"], 80) == [True, True]


def test_always_needs_an_allow_in_both_directions(
    rig: Rig, pods: dict[str, Pod], eventually: Eventually
) -> None:
    assert both(reaches, pods["client"], pods["web"], 80) == [True, True]
    restart(rig, "always")
    # Nothing allows the client's egress.
    assert both(reaches, pods["client"], pods["web"], 80) == [False, False]
    found = rig.nodes[0].policy(next(each.id for each in rig.nodes[0].endpoints()))
    assert found.ingress_enforced and found.egress_enforced
    restart(rig, "default")
    eventually(lambda: both(reaches, pods["client"], pods["web"], 80) == [True, True])


def test_audit_denies_nothing(rig: Rig, pods: dict[str, Pod], eventually: Eventually) -> None:
    restart(rig, "default", audit=True)
    assert rig.nodes[0].status().policy_audit
    assert both(reaches, pods["stranger"], pods["web"], 80) == [True, True]
    restart(rig, "default")
    assert not rig.nodes[0].status().policy_audit
    for ipv6 in (False, True):
        eventually(lambda ipv6=ipv6: not reaches(pods["stranger"], pods["web"], 80, ipv6=ipv6))  # type: ignore[misc]
        eventually(partial(reaches, pods["client"], pods["web"], 80, ipv6=ipv6))

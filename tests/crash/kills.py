"""The loader killed at random times under churn."""

from __future__ import annotations

import os
import random
import time

from tests.crash.churn import Churn
from tests.crash.cluster import CrashCluster, settle
from tests.crash.flows import show
from tests.crash.invariants import every_problem, quick_problems

# Each start may be told other sizes than the one before: then it migrates.
_SIZES = ("policy=65536", "policy=70000,ct4=220000", "policy=80000")
_FULL_EVERY = 10
_LAST_EVENTS = 40


def seeds(first: int, end: int) -> list[int]:
    """The seeds of a test; CRASH_SEED=N has one run with that one instead."""
    chosen = os.environ.get("CRASH_SEED")
    return [int(chosen)] if chosen else list(range(first, end))


def kill_at_random(cluster: CrashCluster, *, seed: int, kills: int, services: bool = False) -> None:
    """Kills the loader so many times, while it starts and while it serves, and fails for the first packet
    that was lost or wrongly passed, the first answer that was wrong, and for a node that does not become
    consistent. With ``services`` those die too, now and then.
    """
    churn = Churn(cluster, seed, services=services)
    chance = random.Random(seed)
    loader = cluster.node.loader
    done = 0
    rounds = 0
    try:
        with churn.running():
            while done < kills:
                _pause(chance.uniform(0.0, 0.8))
                churn.tell("kill")
                loader.kill()
                done += 1
                if chance.random() < 0.3:
                    loader.environment["FIMBRIA_MAP_SIZES"] = chance.choice(_SIZES)
                churn.tell("start")
                loader.start(wait=False)
                if chance.random() < 0.4:
                    # The next one hits it as it starts.
                    continue
                loader.wait_ready()
                churn.tell("ready")
                rounds += 1
                with churn.paused():
                    _check(cluster, churn, full=rounds % _FULL_EVERY == 0)
            loader.wait_ready()
        _check(cluster, churn, full=True)
        settle(churn.leaks)
    except (AssertionError, OSError) as problem:
        raise AssertionError(
            f"seed {seed}, kill {done} of {kills}: {problem}\nwhat went before:\n{_events(churn)}"
        ) from problem
    finally:
        print(f"seed {seed}: {done} kills, {rounds} starts checked; {churn.done}; {cluster.traffic.sent}")


def _check(cluster: CrashCluster, churn: Churn, *, full: bool) -> None:
    look = every_problem if full else quick_problems
    settle(lambda: look(cluster.rig, cluster.node, cluster.expected))
    assert not churn.problems, "\n".join(churn.problems)
    faults = cluster.traffic.faults()
    assert not faults, f"{len(faults)} packets:\n{show(faults)}"


def _events(churn: Churn) -> str:
    return "\n".join(f"{when:.3f} {what}" for when, what in churn.events[-_LAST_EVENTS:])


def _pause(seconds: float) -> None:
    """The time of a kill is the one thing here that is random, so it is waited for."""
    time.sleep(seconds)

"""Random kills while clients work: seeded, so that a run can be told from another and tried again."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fimbria.ipam.v1 import ipam_pb2, ipam_pb2_grpc

from cli.lab.postgres import Postgres
from services.chassis.channel import open_channel
from tests.faults.nursery import Nursery
from tests.faults.servers import START_SECONDS, Replica, Replicas, start_all
from tests.patience import patient

# How long each storm lasts; by FIMBRIA_FAULT_SECONDS for minutes or hours.
STORM_SECONDS: Final = float(os.environ.get("FIMBRIA_FAULT_SECONDS") or 5.0)
HOLD_SECONDS: Final = 0.3
# Identities that nobody uses are collected soon; a replica may remember one for up to a quarter of that time.
GRACE_SECONDS: Final = 1.6
KEPT_SECONDS: Final = GRACE_SECONDS * 0.75
IDENTITY_FLAGS: Final = (f"--identity-grace-seconds={GRACE_SECONDS}",)
NODES: Final = ("n0", "n1", "n2", "n3")
# Small CIDRs: addresses come round again soon, and nodes grow.
IPAM_FLAGS: Final = (
    "--ipam-default-pool-cidr=10.244.0.0/18",
    "--ipam-default-pool-mask-size=26",
    f"--ipam-hold-seconds={HOLD_SECONDS}",
    "--ipam-cidr-idle-seconds=1",
)


@dataclass
class World:
    """The replicas of ipam and identity over their stores."""

    ipam: Replicas
    identity: Replicas
    seed: int
    server: Postgres | None = None
    """The database server, where there is one."""
    kills: int = 0
    server_kills: int = 0
    random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        print(f"seed {self.seed}; FIMBRIA_FAULT_SEED={self.seed} repeats it")

    @property
    def members(self) -> list[Replica]:
        return [*self.ipam.members, *self.identity.members]

    def start(self) -> None:
        """Starts all that do not run and returns when all serve."""
        start_all(self.members)

    def check_logs(self) -> None:
        """No replica has met what it had not reckoned with: nothing was raised that nobody took."""
        for each in self.members:
            lines = each.log.splitlines()
            for number, line in enumerate(lines):
                if '"logger":"grpc' in line:
                    # The library tells of every answer that it could not deliver any more.
                    continue
                strange = "never retrieved" in line or "Traceback" in line or '"level":"critical"' in line
                before = "\n".join(text[:5000] for text in lines[max(number - 4, 0) : number + 1])
                assert not strange, f"{each.directory.name}:\n{before}"

    def tell_tasks(self) -> None:
        """Prints where the tasks of every replica wait."""
        for each in self.members:
            before = len(each.log)
            each.signal(signal.SIGUSR1)
            time.sleep(0.5)
            print(f"--- {each.directory.name}\n{each.log[before:]}")

    def stop(self) -> None:
        for each in self.members:
            each.kill()

    async def register(self) -> None:
        """Makes the nodes on which addresses are held."""
        async with open_channel(self.ipam.target) as channel:
            stub = ipam_pb2_grpc.NodeServiceStub(channel)
            for number, name in enumerate(NODES):
                request = ipam_pb2.RegisterNodeRequest(name=name, ipv4=f"172.31.0.{number + 1}")
                await stub.RegisterNode(request, wait_for_ready=True)

    async def storm(
        self, seconds: float, victims: Sequence[Replica | Postgres], pause: tuple[float, float]
    ) -> None:
        """Kills the victims in random order, one after a pause after the other, until the time is over.

        Each is killed about as often as the others; where there is a server, at least once.
        """
        round_: list[Replica | Postgres] = []
        async with asyncio.timeout(seconds + 3 * START_SECONDS):
            end = asyncio.get_running_loop().time() + seconds
            unharmed = self.server if self.server in victims else None
            while asyncio.get_running_loop().time() < end or unharmed is not None:
                round_ = round_ or self.random.sample(victims, len(victims))
                late = asyncio.get_running_loop().time() >= end
                victim = unharmed if late and unharmed is not None else round_.pop()
                if victim == unharmed:
                    unharmed = None
                await asyncio.sleep(self.random.uniform(*pause))
                if isinstance(victim, Postgres):
                    await self.kill_server(victim)
                else:
                    await self.kill(victim)
        for each in self.members:
            await self._back(each)

    async def kill(self, victim: Replica) -> None:
        """kill -9, then a new life; returns when that has begun, or serves if there is no other replica."""
        if not victim.ready:
            await self._back(victim)
        victim.kill()
        self.kills += 1
        await asyncio.sleep(self.random.uniform(0.0, 0.2))
        victim.spawn()
        if not any(each.ready for each in self._peers(victim)):
            await self._back(victim)

    async def kill_server(self, server: Postgres) -> None:
        """kill -9 of the database server and what comes of it, then a new life; returns when that serves."""
        await asyncio.to_thread(server.kill)
        self.server_kills += 1
        await asyncio.sleep(self.random.uniform(0.0, 0.2))
        await asyncio.to_thread(server.start)

    def _peers(self, one: Replica) -> list[Replica]:
        return [each for each in self.members if each.service == one.service and each is not one]

    async def _back(self, replica: Replica) -> None:
        """Returns when the replica serves, in a further life where it found no database in this one."""
        async with asyncio.timeout(START_SECONDS):
            while not replica.ready:
                if not replica.alive:
                    assert self.server_kills, replica.last_words("ended")
                    replica.spawn()
                await asyncio.sleep(0.02)


def seed_of_the_run() -> int:
    """A new one for each run, or the one that FIMBRIA_FAULT_SEED names."""
    return int(os.environ.get("FIMBRIA_FAULT_SEED") or random.SystemRandom().randrange(1 << 32))


def sqlite_world(nursery: Nursery, directory: Path, seed: int, *, ipam: bool = True) -> World:
    """One process of each service over a file of its own."""
    return World(
        Replicas.of(nursery, "ipam", int(ipam), directory, f"sqlite:///{directory}/ipam.db", *IPAM_FLAGS),
        Replicas.of(nursery, "identity", 1, directory, f"sqlite:///{directory}/identity.db", *IDENTITY_FLAGS),
        seed,
    )


def postgres_world(
    nursery: Nursery, directory: Path, seed: int, server: Postgres, url: str, *, ipam: bool = True
) -> World:
    """Three replicas of each service over one database of the server."""
    return World(
        Replicas.of(nursery, "ipam", 3 * int(ipam), directory, url, *IPAM_FLAGS),
        Replicas.of(nursery, "identity", 3, directory, url, *IDENTITY_FLAGS),
        seed,
        server,
    )


SETTLE_CALLS: Final = 300
SETTLE_SECONDS: Final = patient(20.0)

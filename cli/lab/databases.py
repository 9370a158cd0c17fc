"""Where a lab's services keep what they know: files of their own, or a PostgreSQL server that they share."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
from dataclasses import dataclass
from typing import Final

from cli.errors import BadInput, CliError
from cli.lab.paths import CLUSTER_SERVICES, MARK, LabPaths
from cli.lab.postgres import USER, Postgres
from cli.lab.process import ProcessId

MOST_REPLICAS: Final = 5
# The name of the server's process in a lab, and of the one database, in which each service has a schema.
SERVER: Final = "postgres"
DATABASE: Final = "fimbria"


def check_replicas(replicas: int) -> None:
    """BadInput for a number of replicas that a lab cannot have."""
    if not 1 <= replicas <= MOST_REPLICAS:
        raise BadInput(f"--replicas {replicas} is not valid: expected 1 to {MOST_REPLICAS}")


@dataclass(frozen=True)
class Databases:
    """The stores of a lab whose services have so many replicas: SQLite for one, PostgreSQL for more."""

    paths: LabPaths
    replicas: int = 1

    @property
    def shared(self) -> bool:
        """Whether there is a PostgreSQL server."""
        return self.replicas > 1

    @property
    def server(self) -> Postgres:
        return Postgres(self.paths.postgres)

    @property
    def process(self) -> ProcessId | None:
        """The server's process while it runs."""
        return self.server.process() if self.shared else None

    @property
    def answers(self) -> bool:
        """Whether the server takes connections."""
        try:
            self.server.wait_ready(timeout=0.0)
        except CliError:
            return False
        return True

    @property
    def missing(self) -> bool:
        """Whether there should be a server that runs, and is not."""
        return self.shared and self.process is None

    def url(self, service: str) -> str:
        """Where a service finds its store."""
        if not self.shared:
            return f"sqlite:///{self.paths.data / service}.db"
        return self.server.url(DATABASE)

    def start(self) -> None:
        """Start the server if it does not run, and bring the services' schemas up to date.

        Raises CliError when PostgreSQL is not installed, its directory is somebody else's, or it does not
        start.
        """
        if not self.shared:
            return
        if not self.missing and (self.paths.postgres / "migrated").exists():
            return
        _refuse_foreign(self.paths)
        # It carries the lab's mark: a sweep finds it whatever became of its record.
        self.server.start(environ={MARK: self.paths.id})
        asyncio.run(self._migrate())
        (self.paths.postgres / "migrated").touch()

    async def _migrate(self) -> None:
        import asyncpg

        from services.chassis.errors import StartError
        from services.chassis.postgres import DATABASE_OPTIONS
        from services.chassis.postgres_migrate import migrate

        try:
            connection = await asyncpg.connect(self.server.url())
            try:
                found = await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", DATABASE)
                if found is None:
                    await connection.execute(f'CREATE DATABASE "{DATABASE}" {DATABASE_OPTIONS}')
            finally:
                await connection.close()
            for service in CLUSTER_SERVICES:
                await migrate(self.server.url(DATABASE), f"services.{service}.migrations", service)
        except (StartError, asyncpg.PostgresError, OSError) as error:
            raise CliError(
                f"the lab's databases cannot be made: {error}",
                reason="DATABASE_NOT_READY",
                hint=f"the server's log is {self.server.log}",
            ) from error


def remove_server(paths: LabPaths) -> bool:
    """End the lab's PostgreSQL server and remove its files; False when there was none of that."""
    if not paths.postgres.exists():
        return False
    _refuse_foreign(paths)
    Postgres(paths.postgres).remove()
    return True


def _refuse_foreign(paths: LabPaths) -> None:
    """The directory's name can be guessed: it must not be one that another user has put there."""
    try:
        owner = os.lstat(paths.postgres)
    except FileNotFoundError:
        return
    trusted = {0, os.geteuid()}
    with contextlib.suppress(KeyError):
        trusted.add(pwd.getpwnam(USER).pw_uid)
    if paths.postgres.is_symlink() or owner.st_uid not in trusted:
        raise CliError(
            f"{paths.postgres} belongs to somebody else", hint="remove it, or choose another --dir"
        )

"""`fimbria db`: the schemas of the services in a PostgreSQL database."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cli.errors import BadInput, CliError
from cli.output import output_option, print_rows

if TYPE_CHECKING:
    from services.chassis.postgres_migrate import Status

SERVICES = ("ipam", "identity", "policy")

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


@click.group()
def db() -> None:
    """Schemas of the services in PostgreSQL: migrate, status.

    A SQLite file is brought up to date by its service when that starts.
    """


def _url_option(function: F) -> F:
    return click.option(
        "--database-url",
        "url",
        envvar="FIMBRIA_DATABASE_URL",
        metavar="URL",
        help="postgresql://USER@HOST/DATABASE, or …@/DATABASE?host=/SOCKET/DIR; the password better in "
        "PGPASSFILE (env FIMBRIA_DATABASE_URL).",
    )(function)


def _service_option(function: F) -> F:
    return click.option(
        "--service",
        "services",
        multiple=True,
        type=click.Choice(SERVICES),
        help="Only this service's schema; may be given again. All of them otherwise.",
    )(function)


@db.command()
@_service_option
@_url_option
@click.option(
    "--grant",
    metavar="ROLE",
    help="Role that the services log in as: gets what they need in these schemas, and no more.",
)
def migrate(services: tuple[str, ...], url: str | None, grant: str | None) -> None:
    """Create the schemas that are missing and bring them up to date; may be run again at any time.

    Replicas of the version before may serve meanwhile and go on afterwards.
    """
    from services.chassis.postgres_migrate import migrate

    checked = _postgres(url)
    for service in services or SERVICES:
        done = _run(migrate(checked, f"services.{service}.migrations", service, grant=grant))
        if done.before == done.after:
            click.echo(f"{service}: up to date at revision {done.after}")
        elif done.before is None:
            click.echo(f"{service}: created at revision {done.after}")
        else:
            click.echo(f"{service}: migrated from revision {done.before} to {done.after}")


@db.command()
@_service_option
@_url_option
@output_option()
def status(services: tuple[str, ...], url: str | None, output: str) -> None:
    """Which revision each schema has, which this program has, and how far back replicas may be.

    Exits with 1 when a service of this version would refuse to start on one of them.
    """
    from services.chassis.postgres_migrate import status

    checked = _postgres(url)
    found = [
        _run(status(checked, f"services.{service}.migrations", service)) for service in services or SERVICES
    ]
    columns = [
        ("schema", "SCHEMA"),
        ("revision", "REVISION"),
        ("newest", "THIS VERSION"),
        ("oldest", "OLDEST REPLICA"),
        ("status", "STATUS"),
    ]
    print_rows([_row(each) for each in found], columns, output)
    if any(each.verdict not in ("up to date", "ahead") for each in found):
        click.get_current_context().exit(1)


def _row(status: Status) -> dict[str, Any]:
    return {
        "schema": status.schema,
        "revision": status.state.revision or "",
        "newest": status.known.newest,
        "oldest": status.state.oldest or "",
        "status": status.verdict,
    }


def _postgres(url: str | None) -> str:
    """The URL, checked. Raises BadInput."""
    from services.chassis.backend import DatabaseOpenError, is_postgres, parse_url

    if not url:
        raise BadInput(
            "no database is named: expected --database-url or FIMBRIA_DATABASE_URL",
            hint="postgresql://USER@HOST/DATABASE",
        )
    try:
        parsed = parse_url(url)
    except DatabaseOpenError as error:
        raise BadInput(str(error)) from None
    if not is_postgres(parsed):
        raise BadInput(
            "--database-url names a SQLite file; expected postgresql://USER@HOST/DATABASE",
            hint="a SQLite file is brought up to date by its service when that starts",
        )
    return url


def _run(work: Awaitable[T]) -> T:
    from services.chassis.errors import StartError

    async def carry_out() -> T:
        return await work

    try:
        return asyncio.run(carry_out())
    except StartError as error:
        raise CliError(str(error)) from None

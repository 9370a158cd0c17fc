"""`fimbria identity …`: numeric identities, who uses them, how many are left, and what makes one."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from cli.commands import options
from cli.errors import BadInput, CliError
from cli.output import cell, counted, moment, output_option, print_json, print_rows, table

if TYPE_CHECKING:
    from fimbria.identity.v1 import identity_pb2

_SHOWN = 20


@click.group()
def identity() -> None:
    """Numeric identities: one for each set of security-relevant labels."""


@identity.command("list")
@click.option("--reserved", is_flag=True, help="Also the reserved identities (host, world, …).")
@output_option()
@options.dir_option
def list_identities(reserved: bool, output: str) -> None:
    """The cluster's identities and their labels."""
    from fimbria.identity.v1 import identity_pb2

    from cli.client import pages

    with options.cluster() as cluster:
        request = identity_pb2.ListIdentitiesRequest(include_reserved=reserved)
        listed = pages(cluster.identities.ListIdentities, request, "identities")
    rows = [
        {"id": item.id, "name": item.name, "labels": list(item.labels), "revision": item.revision}
        for item in listed
    ]
    print_rows(rows, [("id", "IDENTITY"), ("name", "NAME"), ("labels", "LABELS")], output)


@identity.command()
@output_option()
@options.dir_option
def status(output: str) -> None:
    """How many numbers are taken, how fast they go, until when, and what garbage collection does.

    UNUSED are those that nobody uses just now: they are collected after the grace period. Rate and lag are
    those of the replica that answers.
    """
    from fimbria.identity.v1 import identity_pb2

    from cli.client import call

    with options.cluster() as cluster:
        told = status_document(
            call(cluster.identities.GetIdentityStatus, identity_pb2.GetIdentityStatusRequest())
        )
    if output == "json":
        print_json(told)
        return
    for line in status_lines(told):
        click.echo(line)


def status_document(told: identity_pb2.IdentityStatus) -> dict[str, Any]:
    """The status as JSON."""
    collection = told.collection
    return {
        "spaces": [
            {
                "name": space.name,
                "first": space.first,
                "last": space.last,
                "size": space.last - space.first + 1,
                "taken": space.taken,
                "used": space.taken - space.unused,
                "unused": space.unused,
                "utilisation": round(space.taken / (space.last - space.first + 1), 6),
                "growth_per_hour": round(space.growth_per_hour, 3),
                "exhausted_time": space.exhausted_time.ToJsonString()
                if space.HasField("exhausted_time")
                else None,
            }
            for space in told.spaces
        ],
        "collection": {
            "collected": collection.collected,
            "rate": round(collection.rate, 3),
            "backlog": collection.backlog,
            "lag_seconds": round(collection.lag_seconds, 3),
            "grace_seconds": collection.grace_seconds,
            "sweep_time": collection.sweep_time.ToJsonString() if collection.HasField("sweep_time") else None,
        },
        "holders": told.holders,
    }


def status_lines(told: dict[str, Any]) -> list[str]:
    """The status for people."""
    rows = [
        {
            **space,
            "numbers": f"{space['first']}-{space['last']}",
            "full": f"{space['utilisation']:.1%}",
            "growth": f"{space['growth_per_hour']:+.1f}/h",
            "exhausted": moment(space["exhausted_time"]) or "not in sight",
        }
        for space in told["spaces"]
    ]
    columns = [
        ("name", "SPACE"),
        ("numbers", "NUMBERS"),
        ("taken", "TAKEN"),
        ("unused", "UNUSED"),
        ("full", "FULL"),
        ("growth", "GROWTH"),
        ("exhausted", "EXHAUSTED"),
    ]
    done = told["collection"]
    return [
        *table(rows, columns),
        "",
        f"garbage collection: {done['collected']} collected, {done['rate']:.1f}/s, {done['backlog']} waiting,"
        f" lag {done['lag_seconds']:.1f} s (unused for {done['grace_seconds']} s before;"
        f" last look {cell(moment(done['sweep_time']))})",
        f"holders with a lease: {told['holders']}",
    ]


@identity.command()
@output_option()
@options.dir_option
def holders(output: str) -> None:
    """Who uses identities: each node's loader, and the policy service for those of prefixes."""
    from fimbria.identity.v1 import identity_pb2

    from cli.client import pages

    with options.cluster() as cluster:
        listed = pages(cluster.identities.ListHolders, identity_pb2.ListHoldersRequest(), "holders")
    rows = [
        {
            "name": item.name,
            "identities": item.identities,
            "report_time": item.report_time.ToJsonString() if item.HasField("report_time") else None,
        }
        for item in listed
    ]
    columns = [("name", "HOLDER"), ("identities", "IDENTITIES"), ("report_time", "REPORTED")]
    print_rows(rows, columns, output)


@identity.group("filter")
def label_filter() -> None:
    """Which labels are security-relevant: only those make an identity."""


@label_filter.command()
@output_option()
@options.dir_option
def show(output: str) -> None:
    """The patterns in force. The first one that matches a label decides."""
    from fimbria.identity.v1 import identity_pb2

    from cli.client import call

    with options.cluster() as cluster:
        told = call(cluster.identities.GetLabelFilter, identity_pb2.GetLabelFilterRequest())
    if output == "json":
        print_json({"patterns": list(told.patterns), "revision": told.revision})
        return
    for pattern in told.patterns:
        click.echo(pattern)


@label_filter.command("set")
@click.argument("patterns", nargs=-1, metavar="[PATTERN]...")
@click.option("--default", "default", is_flag=True, help="The patterns that a new cluster has.")
@click.option("--dry-run", is_flag=True, help="Only say what would change.")
@click.option("--yes", is_flag=True, help="Do not ask before identities change.")
@output_option()
@options.dir_option
def set_filter(patterns: tuple[str, ...], default: bool, dry_run: bool, yes: bool, output: str) -> None:
    """Replace the label filter, after saying what that changes.

    SOURCE:KEYPREFIX includes labels, !SOURCE:KEYPREFIX leaves them out; without SOURCE: any source is meant,
    a $ at the end means the whole key. What no pattern matches is included unless some pattern includes.

    When identities change, --yes or an answer at the terminal is needed. Label sets that merge are workloads
    that policies cannot tell apart any more.
    """
    from fimbria.identity.v1 import identity_pb2

    from cli.client import call

    if default == bool(patterns):
        raise BadInput(
            "expected either patterns or --default",
            hint="`fimbria identity filter show` prints those in force",
        )
    with options.cluster() as cluster:
        before = call(cluster.identities.GetLabelFilter, identity_pb2.GetLabelFilterRequest())
        request = identity_pb2.SetLabelFilterRequest(
            patterns=patterns, validate_only=True, expected_revision=before.revision
        )
        would = call(cluster.identities.SetLabelFilter, request, timeout=60)
        if dry_run or list(would.filter.patterns) == list(before.patterns):
            _print_change(would, output, applied=False, dry_run=dry_run)
            return
        if would.changed and not yes:
            _confirm(would, output)
        request.validate_only = False
        try:
            done = call(cluster.identities.SetLabelFilter, request, timeout=60)
        except CliError as error:
            if error.reason == "FILTER_CHANGED":
                error.hint = "somebody else has set it meanwhile: look at it, and say it again"
            raise
    _print_change(done, output, applied=True, dry_run=False)


def _confirm(would: identity_pb2.SetLabelFilterResponse, output: str) -> None:
    """Returns when the user wants the change. Raises BadInput where nobody can be asked."""
    for line in change_lines(change_document(would)):
        click.echo(line, err=True)
    if output == "json" or not sys.stdin.isatty():
        raise BadInput(
            f"{counted(would.changed, 'identity', 'identities')} would change, and there is nobody to ask",
            reason="NOT_CONFIRMED",
            hint="--yes sets the filter, --dry-run only says what would change",
        )
    click.confirm("Set the filter?", abort=True, err=True)


def _print_change(
    told: identity_pb2.SetLabelFilterResponse, output: str, *, applied: bool, dry_run: bool
) -> None:
    row = {**change_document(told), "applied": applied}
    if output == "json":
        print_json(row)
        return
    for line in change_lines(row):
        click.echo(line)
    if applied:
        click.echo(f"the filter is set, revision {row['filter']['revision']}")
    elif dry_run:
        click.echo("nothing was changed (dry run)")
    else:
        click.echo(f"the filter is that already, revision {row['filter']['revision']}")


def change_document(told: identity_pb2.SetLabelFilterResponse) -> dict[str, Any]:
    """What a filter changes, as JSON; `changes` has the first 10,000."""
    return {
        "filter": {"patterns": list(told.filter.patterns), "revision": told.filter.revision},
        "changed": told.changed,
        "entries": told.entries,
        "merged": told.merged,
        "changes": [
            {
                "identity": each.identity.id,
                "labels": list(each.identity.labels),
                "new_labels": list(each.labels),
                "becomes": each.becomes or None,
                "entries": each.entries,
            }
            for each in told.changes
        ],
    }


def change_lines(told: dict[str, Any]) -> list[str]:
    """What a filter changes, for people."""
    entries = counted(told["entries"], "ipcache entry", "ipcache entries")
    lines = [
        f"identities that change: {told['changed']}, with {entries};"
        f" label sets that several of today's identities come to share: {told['merged']}"
    ]
    rows = [
        {
            "identity": each["identity"],
            "becomes": each["becomes"] or "a new one",
            "left_out": sorted(set(each["labels"]) - set(each["new_labels"])),
            "entries": each["entries"],
        }
        for each in told["changes"][:_SHOWN]
    ]
    columns = [
        ("identity", "IDENTITY"),
        ("becomes", "BECOMES"),
        ("left_out", "LOSES"),
        ("entries", "ENTRIES"),
    ]
    if rows:
        lines += table(rows, columns)
    if told["changed"] > len(rows):
        lines.append(f"… and {told['changed'] - len(rows)} more (-o json has the first 10,000)")
    return lines

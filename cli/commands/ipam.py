"""`fimbria ipam check|release`: addresses that nobody uses any more, or two at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli import errors
from cli.commands import options
from cli.commands.nodes import node_option
from cli.output import cell, counted, moment, output_option, print_json, table

if TYPE_CHECKING:
    from cli import ipam_check

_REPORT = click.Path(dir_okay=False, path_type=Path)


@click.group()
def ipam() -> None:
    """Addresses as the ipam service has them, against those that the nodes' endpoints use."""


@ipam.command()
@click.option(
    "--min-age",
    default="60s",
    show_default=True,
    metavar="AGE",
    help="What was allocated less than this ago is not called leaked: its endpoint may be about to appear.",
)
@click.option(
    "--report",
    type=_REPORT,
    metavar="FILE",
    help="Write what is found to FILE too, for `fimbria ipam release --from-report`.",
)
@node_option
@output_option()
@options.dir_option
def check(min_age: str, report: Path | None, nodes: tuple[str, ...], output: str) -> None:
    """Find addresses that leaked, and those that two may have.

    Every node's loader is asked for its endpoints. What is found is looked at twice. A node whose loader
    does not answer is unverified, and nothing of it is called leaked. Nothing is changed.

    \b
    leaked                 held by an owner that the node has no endpoint of
    not_held               used by an endpoint and held by nobody
    held_by_another        used by an endpoint and held by another owner
    used_twice             used by two endpoints of the node
    used_on_several_nodes  used by endpoints of more than one node

    Exit code 0: nothing was found on any node; 5: something was; 3: nothing was, but nodes are unverified.
    """
    from datetime import UTC, datetime

    from cli import ipam_check, ipam_report

    seconds = ipam_check.parse_seconds(min_age, "--min-age")
    with options.cluster() as cluster:
        found = ipam_check.check(cluster, nodes, seconds)
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    told = ipam_report.document(found, now, seconds)
    if report is not None:
        ipam_report.write(report, told)
    if output == "json":
        print_json(told)
    else:
        _print_check(found, report)
    if found.findings:
        click.get_current_context().exit(errors.DIFFERENT)
    if found.unverified:
        click.get_current_context().exit(errors.UNAVAILABLE)


def _print_check(found: ipam_check.Check, report: Path | None) -> None:
    from cli.ipam_check import LEAKED

    rows = [
        {
            "kind": one.kind.replace("_", " "),
            "address": one.address,
            "node": one.node,
            "holder": f"{one.holder_node}: {one.holder}"
            if one.holder and one.holder_node != one.node
            else one.holder,
            "create_time": moment(one.create_time),
            "users": [owner if node == one.node else f"{node}: {owner}" for node, owner in one.users],
        }
        for one in found.findings
    ]
    columns = [
        ("kind", "FOUND"),
        ("address", "ADDRESS"),
        ("node", "NODE"),
        ("holder", "HELD BY"),
        ("create_time", "SINCE"),
        ("users", "USED BY"),
    ]
    if rows:
        for line in table(rows, columns):
            click.echo(line)
    verified = [view for view in found.nodes.values() if not view.problem]
    click.echo(
        f"{counted(len(rows), 'finding')};"
        f" {counted(sum(view.checked for view in verified), 'owner')} compared"
        f" with {counted(sum(len(view.endpoints) for view in verified), 'endpoint')}"
        f" on {counted(len(verified), 'node')}"
    )
    for view in found.unverified:
        click.echo(f"unverified: {view.node}: {view.problem}")
    if any(one.kind == LEAKED for one in found.findings):
        file = report or "FILE"
        before = "" if report else f"`fimbria ipam check --report {file}`, look at it, then "
        click.echo(f"hint: {before}`fimbria ipam release --from-report {file}` gives leaks back", err=True)


@ipam.command()
@click.option(
    "--from-report",
    "report",
    type=_REPORT,
    required=True,
    metavar="FILE",
    help="What `fimbria ipam check --report FILE` has written.",
)
@click.option("--dry-run", is_flag=True, help="Look again and say what would be released; release nothing.")
@output_option()
@options.dir_option
def release(report: Path, dry_run: bool, output: str) -> None:
    """Give back what a report calls leaked and what still is.

    Each leak is looked at again first: it must be the same allocation, its node's loader must answer and
    have no endpoint of its owner, and no endpoint of any node may use its addresses.

    Exit code 0: every leak of the report was released or is none any more; 3: some were left because their
    node could not be asked; 1: something could not be released, or an endpoint appeared meanwhile.
    """
    from cli import ipam_release
    from cli.ipam_report import read_leaks

    leaks = read_leaks(report)
    with options.cluster() as cluster:
        outcomes = ipam_release.release(cluster, leaks, dry_run=dry_run)
    rows = [one.document() for one in outcomes]
    if output == "json":
        print_json({"dry_run": dry_run, "outcomes": rows})
    else:
        columns = [
            ("outcome", "OUTCOME"),
            ("addresses", "ADDRESSES"),
            ("node", "NODE"),
            ("holder", "HELD BY"),
            ("why", "WHY"),
        ]
        if rows:
            for line in table(rows, columns):
                click.echo(line)
        counts: dict[str, int] = {}
        for one in outcomes:
            counts[one.outcome] = counts.get(one.outcome, 0) + 1
        told = ", ".join(f"{number} {outcome}" for outcome, number in counts.items())
        click.echo(f"{counted(len(rows), 'leak')} in the report: {cell(told)}")
    kinds = {one.outcome for one in outcomes}
    if ipam_release.RACED in kinds or ipam_release.FAILED in kinds:
        click.get_current_context().exit(errors.FAILED)
    if ipam_release.UNVERIFIED in kinds:
        click.get_current_context().exit(errors.UNAVAILABLE)

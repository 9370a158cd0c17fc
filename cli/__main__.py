"""The `fimbria` command's tree. A command's module is imported only when that command is called."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

import click

from cli import errors

# name -> (module:attribute, one line for the help)
COMMANDS = {
    "lab": ("cli.commands.lab:lab", "A cluster of network namespaces on this machine."),
    "policy": ("cli.commands.policy:policy", "Network policies: apply, explain, diff, status."),
    "status": ("cli.commands.status:status", "Every service and loader: serving? which revisions?"),
    "flows": ("cli.commands.flows:flows", "What the datapath let pass and dropped, and why."),
    "trace": ("cli.commands.trace:trace", "Traces that the lab collected, as trees."),
    "endpoint": ("cli.commands.endpoint:endpoint", "Endpoints of the nodes: list, get, regenerate."),
    "identity": ("cli.commands.identity:identity", "Numeric identities, who uses them, the label filter."),
    "ip": ("cli.commands.inspect:ip", "Which identity an IP address has."),
    "ipam": ("cli.commands.ipam:ipam", "Addresses that leaked or that two have: check, release."),
    "node": ("cli.commands.node:node", "Registered nodes and their pod CIDRs; nodes that are gone."),
    "pool": ("cli.commands.pool:pool", "Address pools: extend, drain, exclude, how full they are."),
    "map": ("cli.commands.map:maps", "BPF maps: list, dump, pressure, resize."),
    "prog": ("cli.commands.prog:prog", "BPF programs: where they run, what they cost."),
    "reload": ("cli.commands.prog:reload", "Load the nodes' programs anew, under traffic."),
    "cni": ("cli.commands.cni:cni", "The CNI plugin: print its configuration, install it."),
    "db": ("cli.commands.db:db", "The services' schemas in PostgreSQL: migrate, status."),
    "orphans": ("cli.commands.orphans:orphans", "What on the nodes belongs to nobody."),
}


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is looked up, not before."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=errors.EXIT_CODES.replace("\n", " "),
)
@click.version_option(package_name="fimbria", message="fimbria %(version)s")
@click.option(
    "--dir",
    "directory",
    metavar="DIR",
    help="Directory of the lab to talk to (default /run/fimbria/lab; env FIMBRIA_LAB_DIR).",
)
@click.pass_context
def cli(ctx: click.Context, directory: str | None) -> None:
    """Fimbria, an identity-based container network.

    Commands talk to the cluster that FIMBRIA_IPAM_TARGET, FIMBRIA_IDENTITY_TARGET,
    FIMBRIA_POLICY_TARGET and FIMBRIA_LOADER_TARGETS (name=target,...) name, and otherwise
    to the lab in --dir; a --dir that is given goes before all of these.
    """
    ctx.obj = {"directory": directory}


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (without the program's name) and return its exit code."""
    try:
        result = cli.main(
            args=list(argv) if argv is not None else None, prog_name="fimbria", standalone_mode=False
        )
    except errors.CliError as error:
        errors.report(error)
        return error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return errors.USAGE
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "fimbria"
        errors.report(errors.BadInput(error.format_message(), hint=f"see `{command} --help`"))
        return errors.USAGE
    except click.ClickException as error:
        errors.report(errors.CliError(error.format_message()))
        return errors.FAILED
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return errors.INTERRUPTED
    except BrokenPipeError:
        # The reader went away (`| head`): keep the interpreter from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return errors.OK
    except OSError as error:
        # Files that may not be read, a full disk: what the system says is what the user needs.
        where = f"{error.filename}: " if error.filename else ""
        errors.report(errors.CliError(f"{where}{error.strerror or error}"))
        return errors.FAILED
    return result if isinstance(result, int) else errors.OK


def main() -> None:
    """Entry point of the `fimbria` command."""
    sys.exit(run())


if __name__ == "__main__":
    main()

"""``python -m tests.kernels [KERNEL…] [--suite NAME]… [-- COMMAND…]``: how the datapath does under kernels,
how suites of tests do, or what a command prints in a machine with each."""

from __future__ import annotations

import argparse
import os
import sys

from tests.kernels.machine import run
from tests.kernels.packages import KERNELS, image, kernel
from tests.kernels.run import Result, datapath_under
from tests.kernels.suites import SUITES, run_suite, suite


def main() -> int:
    """1: the kernel refused a program, or a packet was treated wrongly; or the command's exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.kernels", description=__doc__)
    parser.add_argument(
        "kernels", nargs="*", help=f"of {', '.join(each.name for each in KERNELS)}; default: all"
    )
    parser.add_argument(
        "--suite", action="append", metavar="NAME", help=f"of {', '.join(each.name for each in SUITES)}"
    )
    arguments, command = sys.argv[1:], []
    if "--" in arguments:
        at = arguments.index("--")
        arguments, command = arguments[:at], arguments[at + 1 :]
    given = parser.parse_args(arguments)
    wanted = [kernel(name) for name in given.kernels] or list(KERNELS)
    if command:
        outcomes = [run(image(each), command, directory=os.getcwd()) for each in wanted]
        print("".join(outcome.console for outcome in outcomes))
        return int(any(outcome.status != 0 for outcome in outcomes))
    if given.suite:
        status = 0
        for each in wanted:
            for name in given.suite:
                report = run_suite(each, suite(name))
                status |= bool(report.failed or report.unfounded)
                print(report, flush=True)
        return status
    results = [datapath_under(each) for each in wanted]
    print("".join(map(_text, results)))
    return int(any(result.failures or result.wrong for result in results))


def _text(result: Result) -> str:
    lines = [f"{result.kernel}: attached {result.attached}, {result.packets} packets, wrong: {result.wrong}"]
    for failure in result.failures:
        lines.append(f"  {failure['object']}: {failure['program']} is refused:")
        lines += [f"    {line}" for line in failure["log"]]
    lines += [f"  {name:<16} {insns:>8} instructions verified" for name, insns in result.programs.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())

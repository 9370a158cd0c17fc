"""What goes wrong, as the user sees it: one line, what to do next, and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TextIO

OK = 0
FAILED = 1
USAGE = 2
UNAVAILABLE = 3
DENIED = 4
DIFFERENT = 5
INTERRUPTED = 130

EXIT_CODES = """Exit codes: 0 done (probe: allowed); 1 the operation failed; 2 wrong usage or bad input;
3 a service cannot be reached; 4 denied (probe, explain); 5 something would change (policy diff
--exit-code) or was found (ipam check); 130 interrupted.
`lab exec` exits with the code of its command."""


class CliError(Exception):
    """An error that is shown to the user and ends the command with `exit_code`.

    `violations` are (field, description) pairs; `reason` is the UPPER_SNAKE reason of the
    service's ErrorInfo where one was given; `hint` says what to do next.
    """

    exit_code = FAILED

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        hint: str = "",
        violations: Sequence[tuple[str, str]] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.hint = hint
        self.violations = tuple(violations)


class BadInput(CliError):
    """The caller gave something that cannot be accepted; nothing was changed."""

    exit_code = USAGE


class ServiceUnavailable(CliError):
    """A service, or a loader, cannot be reached."""

    exit_code = UNAVAILABLE


def report(error: CliError, stream: TextIO | None = None) -> None:
    """Print `error` on `stream` (stderr)."""
    out = stream if stream is not None else sys.stderr
    reason = f" [{error.reason}]" if error.reason else ""
    print(f"error: {error.message}{reason}", file=out)
    for field, description in error.violations:
        print(f"  {field}: {description}", file=out)
    if error.hint:
        print(f"hint: {error.hint}", file=out)

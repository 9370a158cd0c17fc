"""At the end a table: what each suite came to under each kernel."""

from __future__ import annotations

import pytest

REPORT = "report of a suite"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for outcome in ("passed", "failed"):
        for each in terminalreporter.stats.get(outcome, []):
            for name, text in getattr(each, "user_properties", ()):
                if name == REPORT:
                    terminalreporter.write_line(str(text))

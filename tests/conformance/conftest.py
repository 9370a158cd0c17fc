"""The labs of the published cases, and what is told at the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from cli.lab.lab import Lab
from cli.lab.network import Asked
from tests.conformance.cluster import CaseCluster
from tests.conformance.probing import Tally

_TALLY = pytest.StashKey[Tally]()


@pytest.fixture(scope="session")
def tally(request: pytest.FixtureRequest) -> Tally:
    """What has been tried; told when all is over."""
    return request.config.stash.setdefault(_TALLY, Tally())


class Labs:
    """One lab of two nodes at a time: made anew where a case's nodes need other labels than those before."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self._factory = factory
        self._cluster: CaseCluster | None = None
        self._labels: Mapping[str, str] = {}

    def cluster(self, labels: Mapping[str, str]) -> CaseCluster:
        """The lab whose nodes have `labels`, with what earlier cases left in it."""
        if self._cluster is None or self._labels != labels:
            self.close()
            settings = {"FIMBRIA_NODE_LABELS": ",".join(f"{key}={value}" for key, value in labels.items())}
            lab = Lab(self._factory.mktemp("cases") / "lab")
            self._cluster, self._labels = CaseCluster(lab), labels
            lab.up(nodes=2, network=Asked(settings=settings if labels else None))
        return self._cluster

    def close(self) -> None:
        if self._cluster is not None:
            self._cluster.lab.down()
            self._cluster = None


@pytest.fixture(scope="session")
def labs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Labs]:
    """Labs for cases, one after another."""
    made = Labs(tmp_path_factory)
    yield made
    made.close()


def pytest_sessionfinish(session: pytest.Session) -> None:
    told = session.config.stash.get(_TALLY, None)
    output: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    if told is not None and output is not None:
        output["tally"] = told.plain()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    told = getattr(node, "workeroutput", {}).get("tally")
    if told is not None:
        node.config.stash.setdefault(_TALLY, Tally()).add(told)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    told = config.stash.get(_TALLY, None)
    if told is not None:
        for line in told.lines():
            terminalreporter.write_line(line)

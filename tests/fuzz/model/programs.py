"""The whole model: a node that packets can be given to."""

from __future__ import annotations

from tests.fuzz.model.node import NodePrograms
from tests.fuzz.model.pods import PodPrograms
from tests.fuzz.model.reasons import Drop
from tests.fuzz.model.steps import Action, Decision, Input


class Model(PodPrograms, NodePrograms):
    """A node: give it packets with :meth:`run`, change ``world`` in between.

    A method named like a program is that program; it raises Drop.
    """

    def run(self, given: Input) -> Decision:
        """What the program makes of the packet. Raises Breach for a port chosen against the rules."""
        try:
            return getattr(self, given.program)(given)  # type: ignore[no-any-return]
        except Drop as drop:
            self._reporter.dropped(drop.reason)
            return Decision(Action.DROP, reason=drop.reason)

"""A mismatch with as few steps as will do."""

from __future__ import annotations

from tests.fuzz.kernel import KernelNode
from tests.fuzz.model.steps import Input
from tests.fuzz.session import Mismatch, Step, Twin

_MOST_REPLAYS = 400


def shrink(node: KernelNode, mismatch: Mismatch) -> None:
    """Leaves steps out of the mismatch, in place, as long as something still differs.

    What differs then may be another thing than at first: smaller is better. Nothing changes if it cannot be
    replayed.
    """
    twin = Twin(node)
    with_flows = any(line.startswith("flow") for line in mismatch.differences)
    tries = 0

    def differs(steps: list[Step]) -> list[str]:
        nonlocal tries
        tries += 1
        return twin.replay(steps, with_flows=with_flows)

    steps, differences = mismatch.steps, differs(mismatch.steps)
    if not differences:
        mismatch.differences.append("not seen again in a replay")
        return
    size = len(steps) // 2
    while size and tries < _MOST_REPLAYS:
        start = 0
        while start < len(steps) and tries < _MOST_REPLAYS:
            shorter = steps[:start] + steps[start + size :]
            again = differs(shorter) if shorter else []
            if again:
                steps, differences = shorter, again
            else:
                start += size
        size //= 2
    while steps and not isinstance(steps[-1], Input):
        steps.pop()
    mismatch.differences = twin.replay(steps, with_flows=with_flows) or differences
    mismatch.steps, mismatch.decision = steps, twin.decision

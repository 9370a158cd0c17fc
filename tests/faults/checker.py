"""Whether a history can have come about one operation after another, and whether anything had two owners.

Two questions are asked. Of each key (an owner, a prefix): is there an order of its operations, each
at a moment between its call and its answer, in which a model gives exactly the answers that clients got?
Operations of unknown outcome may stand anywhere after their call, or nowhere. That is linearizability,
searched for after Wing and Gong, with what Lowe added: a set of operations done and a state are tried once.
Across keys: was there a moment at which two keys certainly held the same value?
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from tests.faults.history import NEVER, Operation

# States of a key: what it holds. SOMETHING is a value that nobody was told.
NOTHING: Final = ""
SOMETHING: Final = "?"

# The states that can follow, none of them when the operation cannot have been answered so.
Model = Callable[[str, Operation], Sequence[str]]


class Violation(AssertionError):
    """What was promised was not kept; the text tells which operations show it."""


def holding(state: str, operation: Operation) -> Sequence[str]:
    """The model of an owner that takes a value, keeps it and gives it back.

    Taking twice gives the same; what is given back is told, and nothing when nothing was held. Dropping gives
    it back and tells nothing.
    """
    if operation.kind == "take":
        return _take(state, operation)
    if operation.kind == "free":
        if operation.known and not _agrees(state, operation.result):
            return ()
        return (NOTHING,)
    if operation.kind == "drop":
        return (NOTHING,)
    if operation.kind == "read":
        return (operation.result,) if _agrees(state, operation.result) else ()
    raise ValueError(f"an owner does not {operation.kind}")


def _take(state: str, operation: Operation) -> Sequence[str]:
    if not operation.known:
        return (SOMETHING,) if state == NOTHING else (state,)
    if operation.result == NOTHING:
        return ()
    return (operation.result,) if state in (NOTHING, SOMETHING, operation.result) else ()


def numbered(state: str, operation: Operation) -> Sequence[str]:
    """The model of what may be dropped at any time once nobody uses it, but says nothing of it."""
    if operation.kind == "free":
        return (state, NOTHING)
    return holding(state, operation)


def published(state: str, operation: Operation) -> Sequence[str]:
    """The model of an entry that several may put, the last one counts, and that only its putter may drop.

    Arguments and states are "WHO VALUE".
    """
    if operation.kind == "put":
        return (operation.argument,)
    if operation.kind == "drop":
        who = operation.argument.split(" ")[0]
        return (NOTHING,) if state.split(" ")[0] == who else (state,)
    if operation.kind == "read":
        return (state,) if state == operation.result else ()
    raise ValueError(f"an entry does not {operation.kind}")


def _agrees(state: str, told: str) -> bool:
    return state == told or (state == SOMETHING and told != NOTHING)


def check_keys(operations: Iterable[Operation], model: Model) -> int:
    """Checks every key by itself; how many there were. Raises Violation."""
    by_key: dict[str, list[Operation]] = defaultdict(list)
    for operation in operations:
        by_key[operation.key].append(operation)
    for key, own in by_key.items():
        if not linearizable(own, model):
            story = "\n  ".join(str(each) for each in own[-40:])
            raise Violation(f"no order of the operations on {key} explains their answers:\n  {story}")
    return len(by_key)


def linearizable(operations: Sequence[Operation], model: Model) -> bool:
    """Whether an order of the operations explains all their answers; those of unknown outcome need not be."""
    ordered = sorted(operations, key=lambda each: each.invoked)
    must = sum(1 << position for position, each in enumerate(ordered) if each.known)
    tried: set[tuple[int, str]] = set()
    stack: list[tuple[int, str]] = [(0, NOTHING)]
    while stack:
        done, state = stack.pop()
        if done & must == must:
            return True
        if (done, state) in tried:
            continue
        tried.add((done, state))
        for position, operation in _next(ordered, done):
            for following in model(state, operation):
                stack.append((done | 1 << position, following))
    return False


def _next(ordered: Sequence[Operation], done: int) -> list[tuple[int, Operation]]:
    """The operations that may come next: called before any that is still to come had its answer."""
    first_answer = NEVER
    found: list[tuple[int, Operation]] = []
    for position, operation in enumerate(ordered):
        if operation.invoked > first_answer:
            break
        if not done >> position & 1:
            found.append((position, operation))
            first_answer = min(first_answer, operation.returned)
    return [(position, each) for position, each in found if each.invoked <= first_answer]


@dataclass(frozen=True, slots=True)
class Hold:
    """A time during which a key certainly held a value; or, when it is ``brief``, some moment of it."""

    key: str
    value: str
    start: float
    end: float
    brief: bool = False

    def clashes(self, other: Hold) -> bool:
        """Whether both certainly held at one moment."""
        if self.brief and other.brief:
            return False
        if self.brief:
            return other.start <= self.start and self.end <= other.end
        if other.brief:
            return other.clashes(self)
        return self.start < other.end and other.start < self.end


def certain_holds(operations: Iterable[Operation]) -> list[Hold]:
    """From each answer to a take until the call of the next free that may have come after it."""
    by_key: dict[str, list[Operation]] = defaultdict(list)
    for operation in operations:
        by_key[operation.key].append(operation)
    holds = []
    for key, own in by_key.items():
        frees = [each for each in own if each.kind in ("free", "drop")]
        for take in (each for each in own if each.kind == "take" and each.known):
            after = [free.invoked for free in frees if free.returned > take.invoked]
            end = min(after, default=NEVER)
            if end > take.returned:
                holds.append(Hold(key, take.result, take.returned, end))
            else:
                holds.append(Hold(key, take.result, take.invoked, take.returned, brief=True))
    return holds


def check_single_owners(operations: Iterable[Operation]) -> int:
    """No value was certainly held by two keys at one moment. How many holds there were; raises Violation."""
    holds = certain_holds(operations)
    by_value: dict[str, list[Hold]] = defaultdict(list)
    for hold in holds:
        by_value[hold.value].append(hold)
    for value, own in by_value.items():
        own.sort(key=lambda each: each.start)
        for position, hold in enumerate(own):
            for other in own[position + 1 :]:
                if other.start > hold.end:
                    break
                if hold.key != other.key and hold.clashes(other):
                    raise Violation(f"{value} had two owners at once: {hold} and {other}")
    return len(holds)


def check_held_back(operations: Sequence[Operation], seconds: float) -> None:
    """Nobody got a value sooner than ``seconds`` after another had given it back. Raises Violation."""
    freed: dict[str, list[Operation]] = defaultdict(list)
    for operation in operations:
        if operation.kind == "free" and operation.known and operation.result:
            freed[operation.result].append(operation)
    for take in operations:
        if take.kind != "take" or not take.known:
            continue
        for free in freed[take.result]:
            # Only where it is certain that the one came after the other.
            if free.key != take.key and take.invoked > free.returned:
                waited = take.returned - free.invoked
                if waited < seconds:
                    raise Violation(
                        f"{take.result} was given {waited:.3f} s after its release: {free}; {take}"
                    )


def check_kept(operations: Sequence[Operation], seconds: float) -> int:
    """What was taken stayed what it was for ``seconds``, for its key and for its value. Raises Violation.

    How often a key got another value than the last time: after a longer rest that is as it should be.
    """
    changed = 0
    last_of_key: dict[str, Operation] = {}
    last_of_value: dict[str, Operation] = {}
    takes = [each for each in operations if each.kind == "take" and each.known]
    for take in sorted(takes, key=lambda each: each.returned):
        of_key, of_value = last_of_key.get(take.key), last_of_value.get(take.result)
        for former in (of_key, of_value):
            if former is None or (former.key, former.result) == (take.key, take.result):
                continue
            rested = take.returned - former.invoked
            if rested < seconds:
                raise Violation(f"{former} did not last for {seconds} s: {take}")
        changed += of_key is not None and of_key.result != take.result
        last_of_key[take.key] = last_of_value[take.result] = take
    return changed

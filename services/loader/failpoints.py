"""Places where a test may have the process die, as a power cut or the OOM killer would have it.

A place costs a dictionary lookup while none is chosen. ``FIMBRIA_FAILPOINT=NAME[:N]`` chooses one: at the
N-th time (1: the first) that it is passed, the process ends by SIGKILL; nothing is flushed, closed or undone.
``NAME!ERROR[:N]`` raises an OSError with that errno name there instead, once.

A path (``FIMBRIA_FAILPOINT=/DIRECTORY``) lets a test choose while the process runs: the file ``chosen`` in
that directory, if it is there, holds what the variable would. Every place that is passed is noted in
``passed``.

Names are ``<what>.<step>``: "migrate.filled" is passed when a migration has filled its maps. They are listed
in :data:`PLACES`, which the crash tests go through one by one; passing one that is not listed is an error.
"""

from __future__ import annotations

import errno
import os
import signal
from typing import Final

VARIABLE: Final = "FIMBRIA_FAILPOINT"

# In the order in which they are passed. The module that passes a place says what is true there.
PLACES: Final[tuple[str, ...]] = (
    # bpf/opening.py, bpf/migration.py
    "load.compiled",
    "load.loaded",
    "migrate.created",
    "migrate.filled",
    "migrate.committed",
    "migrate.switched",
    "migrate.caught_up",
    "migrate.map_pinned",
    "migrate.done",
    "pin.program",
    # bpf/attach.py
    "attach.filter",
    "attach.link_created",
    "attach.link_pinned",
    "attach.replaced",
    # bpf/slots.py, bpf/subjects.py, policy/
    "slot.row",
    "slot.device",
    "slot.address",
    "subject.row",
    "subject.turned",
    "policy.instance_written",
    "policy.in_force",
    "policy.old_deleted",
    "prefixes.written",
    # state_file.py, endpoints/records.py
    "record.written",
    "record.renamed",
    "record.deleted",
    # endpoints/
    "add.recorded",
    "add.linked",
    "add.realized",
    "add.published",
    "delete.noted",
    "delete.device",
    "delete.rows",
    "identity.policy",
    "identity.switched",
    "identity.saved",
)

_chosen = os.environ.get(VARIABLE, "")
_counts: dict[str, int] = {}


def passed(place: str) -> None:
    """Tells that a place is passed. Raises OSError, or does not return, if a test has chosen so."""
    if not _chosen:
        return
    if place not in PLACES:
        raise ValueError(f"failpoint {place!r} is not in PLACES")
    chosen = _chosen if _chosen[0] != "/" else _chosen_now(_chosen, place)
    what, _, number = chosen.partition(":")
    name, _, error = what.partition("!")
    if place != name:
        return
    _counts[chosen] = _counts.get(chosen, 0) + 1
    if _counts[chosen] != int(number or 1):
        return
    if not error:
        # No cleanup of any kind: that is the point.
        os.kill(os.getpid(), signal.SIGKILL)
    raise OSError(getattr(errno, error), f"failpoint {place}")


def _chosen_now(directory: str, place: str) -> str:
    with open(os.path.join(directory, "passed"), "a", encoding="ascii") as file:
        file.write(f"{place}\n")
    try:
        with open(os.path.join(directory, "chosen"), encoding="ascii") as file:
            return file.read().strip()
    except FileNotFoundError:
        return ""

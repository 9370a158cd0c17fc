"""Which labels are security-relevant: patterns, tried in their order on each label of a workload.

`k8s:app` includes the labels of source k8s whose key begins with app, `!k8s:app` excludes them; without a
source (or with `any`) labels of every source are meant, and a pattern that ends in `$` means the whole key.
The first pattern that matches a label decides. A label that none matches is included, unless some pattern
includes: then what is not named is left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from services.chassis.labels import NAMESPACE_KEY, SOURCE_ANY, SOURCE_CIDR, SOURCE_RESERVED, LabelSet
from services.identity.problems import filter_invalid

# What controllers put on pods to tell them from their own older or other ones. No policy selects by it, and
# each of these would make an identity for every roll-out or every pod.
DEFAULT_PATTERNS = (
    "!k8s:pod-template-hash$",
    "!k8s:pod-template-generation$",
    "!k8s:controller-revision-hash$",
    "!k8s:statefulset.kubernetes.io/pod-name$",
    "!k8s:apps.kubernetes.io/pod-index$",
    "!k8s:batch.kubernetes.io/job-completion-index$",
    "!k8s:batch.kubernetes.io/controller-uid$",
    "!k8s:controller-uid$",
)

_SOURCE = re.compile(r"[a-z][a-z0-9-]{0,31}")
_KEY = re.compile(r"[A-Za-z0-9_./-]*")
_NAMESPACE = f"{NAMESPACE_KEY}="


@dataclass(frozen=True, slots=True)
class Pattern:
    """One pattern; `source` is empty for any."""

    include: bool
    source: str
    key: str
    whole: bool

    def matches(self, source: str, key: str) -> bool:
        """Whether it speaks of labels of this source and key."""
        if self.source and self.source != source:
            return False
        return key == self.key if self.whole else key.startswith(self.key)

    def __str__(self) -> str:
        source = f"{self.source}:" if self.source else ""
        return f"{'' if self.include else '!'}{source}{self.key}{'$' if self.whole else ''}"


def parse_pattern(text: str, field: str) -> Pattern:
    """Raises InvalidArgument (FILTER_INVALID) that names `field`, the pattern and what was expected."""
    include = not text.startswith("!")
    body = text if include else text[1:]
    source, colon, key = body.partition(":")
    if not colon:
        source, key = "", body
    elif not _SOURCE.fullmatch(source):
        expected = "before the colon a source like k8s, of [a-z0-9-]; or no colon for any source"
        raise filter_invalid(field, text, f"has the source {source!r}; expected {expected}")
    if source in (SOURCE_RESERVED, SOURCE_CIDR):
        expected = "a source of workloads' labels, for example k8s"
        raise filter_invalid(
            field, text, f"is about {source} labels, which no filter leaves out; expected {expected}"
        )
    whole = key.endswith("$")
    key = key.removesuffix("$")
    if not _KEY.fullmatch(key):
        expected = "[A-Za-z0-9_./-], and $ only at the end"
        raise filter_invalid(field, text, f"has the key prefix {key!r}; expected {expected}")
    if not key and (whole or not source):
        expected = "[!][SOURCE:]KEYPREFIX[$]: ! excludes, $ means the whole key; one of SOURCE, KEYPREFIX"
        raise filter_invalid(field, text, f"names no key; expected {expected}")
    return Pattern(include, "" if source == SOURCE_ANY else source, key, whole)


@dataclass(frozen=True, slots=True)
class LabelFilter:
    """Patterns in their order; made by `parse`."""

    patterns: tuple[Pattern, ...]
    # Whether labels that no pattern matches are included.
    others: bool

    @classmethod
    def parse(cls, texts: Sequence[str], field: str = "patterns") -> LabelFilter:
        """The filter of these patterns; of none, the default one.

        Raises InvalidArgument (FILTER_INVALID): a malformed pattern, or one that stands there already.
        """
        patterns: list[Pattern] = []
        places: dict[tuple[str, str, bool], int] = {}
        for at, text in enumerate(texts or DEFAULT_PATTERNS):
            pattern = parse_pattern(text, f"{field}[{at}]")
            first = places.setdefault((pattern.source, pattern.key, pattern.whole), at)
            if first != at:
                expected = "each label to be named once, for the first pattern that matches decides"
                raise filter_invalid(f"{field}[{at}]", text, f"repeats {field}[{first}]; expected {expected}")
            patterns.append(pattern)
        return cls(tuple(patterns), not any(pattern.include for pattern in patterns))

    @property
    def texts(self) -> tuple[str, ...]:
        """The patterns in their normal form."""
        return tuple(map(str, self.patterns))

    def includes(self, source: str, key: str) -> bool:
        """Whether labels of this source and key are security-relevant."""
        if source in (SOURCE_RESERVED, SOURCE_CIDR):
            return True
        for pattern in self.patterns:
            if pattern.matches(source, key):
                return pattern.include
        return self.others

    def apply(self, labels: LabelSet) -> LabelSet:
        """The security-relevant labels of a set in normal form, in normal form too.

        A set of which nothing is left keeps its namespace label; one that has none stays as it is, for an
        identity without labels would be everybody's.
        """
        kept = [text for text in labels if self._keeps(text)]
        if len(kept) == len(labels):
            return labels
        if not kept:
            kept = [text for text in labels if text.partition(":")[2].startswith(_NAMESPACE)] or list(labels)
        # In normal form already: parsing it again would tell nothing.
        return tuple.__new__(LabelSet, kept)

    def _keeps(self, text: str) -> bool:
        source, _, rest = text.partition(":")
        return self.includes(source, rest.partition("=")[0])

"""Where the identities of each number space are stored."""

from __future__ import annotations

from types import MappingProxyType

from sqlalchemy import Table

from services.identity.numbers import CLUSTER, PREFIXES
from services.identity.schema import identities, prefixes

TABLES: MappingProxyType[str, Table] = MappingProxyType({CLUSTER.name: identities, PREFIXES.name: prefixes})

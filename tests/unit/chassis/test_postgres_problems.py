"""What a client is told when the connection to PostgreSQL breaks in the middle of something."""

from __future__ import annotations

from typing import Any

import asyncpg
import pytest
from sqlalchemy import exc as sa_exc
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_dbapi

from services.chassis.errors import Unavailable
from services.chassis.postgres import problem


@pytest.mark.parametrize("kind", [asyncpg.InternalClientError, asyncpg.InterfaceError])
def test_a_driver_that_lost_its_connection_is_unavailable_also_behind_sqlalchemys_errors(
    kind: type[Exception],
) -> None:
    cause = kind("cannot switch to state 13; another operation (2) is in progress")
    make: Any = AsyncAdapt_asyncpg_dbapi.Error
    adapted = make(str(cause), cause)
    adapted.__cause__ = cause
    for error in (cause, sa_exc.DBAPIError("SELECT 1", {}, adapted)):
        told = problem(error)
        assert isinstance(told, Unavailable) and told.reason == "DATABASE_IO" and told.retry_after

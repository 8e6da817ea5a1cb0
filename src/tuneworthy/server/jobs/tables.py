"""The two tables of the queue; imported when a queue is opened, for SQLAlchemy takes its time."""

from __future__ import annotations

from sqlalchemy import Column, Connection, Double, Integer, MetaData, String, Table, Text, text

_METADATA = MetaData()

JOBS = Table(
    "tuneworthy_jobs",
    _METADATA,
    Column("id", String(64), primary_key=True),
    Column("created", Double, nullable=False, index=True),
    Column("status", String(32), nullable=False, index=True),
    Column("request", Text, nullable=False),
    Column("result", Text),
    Column("error", Text),
    Column("finished", Double),
    Column("owner", String(255)),
    Column("lease_until", Double),
    Column("fence", Integer, nullable=False),
    Column("deaths", Integer, nullable=False),
)

EVENTS = Table(
    "tuneworthy_job_events",
    _METADATA,
    Column("job", String(64), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("key", String(255), nullable=False),
    Column("created", Double, nullable=False),
    Column("level", String(16), nullable=False),
    Column("message", Text, nullable=False),
    Column("data", Text),
)

_LOCK = 7_386_001
"""Of PostgreSQL's advisory locks: two processes may not create the tables at once."""


def create(connection: Connection) -> None:
    """Create what is missing."""
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"select pg_advisory_xact_lock({_LOCK})"))
    _METADATA.create_all(connection)

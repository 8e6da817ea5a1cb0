"""Jobs in one table, with leases: SQLite in the state folder, or PostgreSQL by URL.

A worker *claims* a job for `LEASE_SECONDS` and renews the claim while it works. Every claim and
every cancel, pause or resume raises the job's `fence`, and a worker's writes name the fence that
they belong to: a worker that was thought dead, or whose job was taken away, can write no more. So
a job may be begun many times, and is finished once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from tuneworthy.errors import MissingExtra, ProjectError, StorageError

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

Status = Literal[
    "validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"
]
WAITING: tuple[Status, ...] = ("validating_files", "queued", "running")
"""What a worker may take up, if nobody else holds it."""
CHANGES: dict[Status, tuple[Status, ...]] = {
    "cancelled": (*WAITING, "paused"),
    "paused": WAITING,
    "queued": ("paused",),
}
"""What a user may make of a job, and from where: cancel, pause, resume."""
LEASE_SECONDS = 15.0
"""So long after the last word of a worker on another machine its job is taken up again."""
MOST_DEATHS = 20
"""A job under which so many workers died in a row, and that came no further meanwhile, is given up:
it would kill the next one."""


class Lost(Exception):
    """The job is no longer this worker's: it was cancelled, paused, or taken up by another."""


class NotNow(Exception):
    """A job of this status cannot be changed in this way."""

    def __init__(self, status: Status) -> None:
        super().__init__(status)
        self.status = status


class Unreachable(StorageError):
    """The database does not answer: nothing is known of any job until it does."""


@dataclass(frozen=True, slots=True)
class Job:
    """One row. `request` is what was asked for, `result` what came of it; times in seconds."""

    id: str
    created: float
    status: Status
    request: dict[str, Any]
    result: dict[str, Any] | None
    error: dict[str, Any] | None
    finished: float | None
    owner: str | None
    fence: int
    deaths: int


@dataclass(frozen=True, slots=True)
class Event:
    """What happened; `key` is unique in a job, so that what is done again is not told again."""

    key: str
    message: str
    level: Literal["info", "warn", "error"] = "info"
    data: dict[str, Any] | None = None
    """Figures of a training step, for an event of type `metrics`."""
    progress: bool = False
    """Told for the first time, the job has come further."""
    number: int = 0
    created: float = 0.0


class Queue:
    """The table. `where` is the state folder, or a PostgreSQL URL."""

    def __init__(self, where: Path | str) -> None:
        from tuneworthy.server.jobs import tables

        self.tables = tables
        self.engine = _engine(where)
        with self._transaction() as connection:
            tables.create(connection)

    def close(self) -> None:
        self.engine.dispose()

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        from sqlalchemy.exc import OperationalError

        try:
            with self.engine.begin() as connection:
                yield connection
        except OperationalError as error:
            raise _unreachable(error) from None

    # What users do

    def create(self, id_: str, request: Mapping[str, Any]) -> Job:
        jobs = self.tables.JOBS
        with self._transaction() as connection:
            connection.execute(
                jobs.insert().values(
                    id=id_,
                    created=self._now(connection),
                    status="validating_files",
                    request=json.dumps(request),
                    fence=0,
                    deaths=0,
                )
            )
            self._tell(connection, id_, [Event("created", "Created fine-tuning job")])
            return self._row(connection, id_)

    def get(self, id_: str) -> Job | None:
        with self._transaction() as connection:
            found = connection.execute(
                self.tables.JOBS.select().where(self.tables.JOBS.c.id == id_)
            ).first()
            return _job(found) if found else None

    def page(self, after: str | None, limit: int) -> tuple[list[Job], bool]:
        """The newest jobs after one of them, and whether there are more.

        Raises KeyError if there is no job `after`.
        """
        jobs = self.tables.JOBS
        wanted = jobs.select().order_by(jobs.c.created.desc(), jobs.c.id.desc())
        with self._transaction() as connection:
            if after is not None:
                mark = self._row(connection, after)
                wanted = wanted.where(
                    (jobs.c.created < mark.created)
                    | ((jobs.c.created == mark.created) & (jobs.c.id < after))
                )
            rows = connection.execute(wanted.limit(limit + 1)).all()
        return [_job(row) for row in rows[:limit]], len(rows) > limit

    def change(self, id_: str, status: Status, message: str) -> Job:
        """Cancel, pause or resume; who works on the job loses it.

        Raises KeyError if there is no such job, NotNow if its status does not allow it.
        """
        jobs = self.tables.JOBS
        with self._transaction() as connection:
            before = self._row(connection, id_, lock=True)
            if before.status not in CHANGES[status]:
                raise NotNow(before.status)
            finished = self._now(connection) if status == "cancelled" else None
            connection.execute(
                jobs.update()
                .where(jobs.c.id == id_)
                .values(
                    status=status,
                    owner=None,
                    lease_until=None,
                    fence=before.fence + 1,
                    deaths=0,
                    finished=finished,
                )
            )
            self._tell(connection, id_, [Event(f"{status}:{before.fence + 1}", message)])
            return self._row(connection, id_)

    def events(self, id_: str, after: int | None, limit: int) -> tuple[list[Event], bool]:
        """The newest events before number `after`, and whether there are more."""
        events = self.tables.EVENTS
        wanted = events.select().where(events.c.job == id_).order_by(events.c.number.desc())
        if after is not None:
            wanted = wanted.where(events.c.number < after)
        with self._transaction() as connection:
            rows = connection.execute(wanted.limit(limit + 1)).all()
        return [_event(row) for row in rows[:limit]], len(rows) > limit

    # What workers do

    def claim(self, owner: str) -> Job | None:
        """The oldest job that nobody holds, now held by `owner`; None if there is none.

        What `owner` itself holds was left by a process that died: a name belongs to one process.
        """
        jobs = self.tables.JOBS
        with self._transaction() as connection:
            now = self._now(connection)
            free = (jobs.c.owner.is_(None)) | (jobs.c.owner == owner) | (jobs.c.lease_until < now)
            found = connection.execute(
                jobs.select()
                .where(jobs.c.status.in_(WAITING) & free)
                .order_by(jobs.c.created, jobs.c.id)
                .limit(1)
                .with_for_update(skip_locked=True)
            ).first()
            if found is None:
                return None
            died = found.owner is not None
            connection.execute(
                jobs.update()
                .where(jobs.c.id == found.id)
                .values(
                    owner=owner,
                    lease_until=now + LEASE_SECONDS,
                    fence=found.fence + 1,
                    deaths=found.deaths + died,
                )
            )
            if died:
                message = f"The worker {found.owner} died; {owner} goes on from what it kept"
                event = Event(f"died:{found.fence}", message, "warn")
                self._tell(connection, found.id, [event])
            return self._row(connection, found.id)

    def renew(self, job: Job) -> None:
        """Say that the worker lives. Raises Lost."""
        with self._transaction() as connection:
            until = self._now(connection) + LEASE_SECONDS
            self._set(connection, job, lease_until=until)

    def tell(self, job: Job, events: Sequence[Event], status: Status | None = None) -> None:
        """Add events, those that are there already left out; with a new status. Raises Lost."""
        with self._transaction() as connection:
            self._set(connection, job, **({"status": status} if status else {}))
            if any(event.progress for event in self._tell(connection, job.id, events)):
                self._set(connection, job, deaths=0)

    def release(self, job: Job, event: Event) -> None:
        """Put the job back: this worker stops, and did not die. Raises Lost."""
        with self._transaction() as connection:
            free = {"owner": None, "lease_until": None, "deaths": 0}
            self._set(connection, job, status="queued", **free)
            self._tell(connection, job.id, [event])

    def finish(
        self,
        job: Job,
        status: Literal["succeeded", "failed"],
        event: Event,
        *,
        result: Mapping[str, Any] | None = None,
        error: Mapping[str, Any] | None = None,
    ) -> None:
        """The end of a job: once, by the worker that holds it. Raises Lost."""
        with self._transaction() as connection:
            self._set(
                connection,
                job,
                status=status,
                owner=None,
                lease_until=None,
                finished=self._now(connection),
                result=json.dumps(result) if result is not None else None,
                error=json.dumps(error) if error is not None else None,
            )
            self._tell(connection, job.id, [event])

    def _set(self, connection: Connection, job: Job, **values: Any) -> None:
        jobs = self.tables.JOBS
        held = (jobs.c.id == job.id) & (jobs.c.fence == job.fence) & jobs.c.status.in_(WAITING)
        # Setting the fence to itself locks the row where there is nothing else to set.
        done = connection.execute(jobs.update().where(held).values(fence=job.fence, **values))
        if done.rowcount != 1:
            raise Lost(job.id)

    def _tell(self, connection: Connection, id_: str, events: Sequence[Event]) -> list[Event]:
        """Append events and return those that are new; who calls this has locked the job's row."""
        from sqlalchemy import func, select

        table = self.tables.EVENTS
        keys = [event.key for event in events]
        there = connection.scalars(
            select(table.c.key).where((table.c.job == id_) & table.c.key.in_(keys))
        )
        known = set(there)
        last = connection.scalar(select(func.max(table.c.number)).where(table.c.job == id_)) or 0
        now = self._now(connection)
        new = list({event.key: event for event in events if event.key not in known}.values())
        rows = [
            {
                "job": id_,
                "number": number,
                "key": event.key,
                "created": now,
                "level": event.level,
                "message": event.message,
                "data": json.dumps(event.data) if event.data is not None else None,
            }
            for number, event in enumerate(new, last + 1)
        ]
        if rows:
            connection.execute(table.insert(), rows)
        return new

    def _row(self, connection: Connection, id_: str, *, lock: bool = False) -> Job:
        wanted = self.tables.JOBS.select().where(self.tables.JOBS.c.id == id_)
        found = connection.execute(wanted.with_for_update() if lock else wanted).first()
        if found is None:
            raise KeyError(id_)
        return _job(found)

    def _now(self, connection: Connection) -> float:
        """The database's clock where several machines share it: theirs may differ."""
        if connection.dialect.name == "sqlite":
            return time.time()
        from sqlalchemy import text

        said = connection.scalar(text("select extract(epoch from clock_timestamp())"))
        return float(said or 0.0)


def _engine(where: Path | str) -> Engine:
    import sqlalchemy
    from sqlalchemy import create_engine, event

    if isinstance(where, Path):
        where.mkdir(parents=True, exist_ok=True)
        engine = create_engine(
            f"sqlite:///{where.absolute() / 'jobs.sqlite'}", connect_args={"timeout": 30}
        )

        @event.listens_for(engine, "connect")
        def _opened(connection: Any, _: Any) -> None:
            connection.isolation_level = None  # `begin` below says when a transaction starts
            connection.execute("pragma journal_mode = wal")
            connection.execute("pragma synchronous = full")

        @event.listens_for(engine, "begin")
        def _begun(connection: Connection) -> None:
            # A reader that turns into a writer in the middle would find the table changed.
            connection.exec_driver_sql("begin immediate")

        return engine
    scheme = urlsplit(where).scheme
    if scheme not in ("postgresql", "postgres"):
        raise ProjectError(
            f"the queue of jobs is SQLite or PostgreSQL, not '{scheme}'",
            where="--jobs",
            hint="--jobs postgresql://user@host/database",
        )
    try:
        address = where.replace(f"{scheme}://", "postgresql+psycopg://", 1)
        return create_engine(address, pool_pre_ping=True, isolation_level="READ COMMITTED")
    except ImportError:
        raise MissingExtra(
            "PostgreSQL needs psycopg", where="--jobs", hint="pip install 'tuneworthy[postgres]'"
        ) from None
    except sqlalchemy.exc.ArgumentError:
        raise ProjectError(
            "not a PostgreSQL URL", where="--jobs", hint="--jobs postgresql://user@host/database"
        ) from None


def _unreachable(error: Exception) -> Unreachable:
    """The database's complaint in one line; its address may hold a password, and is left out."""
    lines = str(error.__cause__ or error).strip().splitlines()
    return Unreachable(
        f"the queue of jobs does not answer: {lines[0][:160] if lines else type(error).__name__}",
        where="--jobs",
        hint="is the database up, and is there room on its disk?",
    )


def _job(row: Any) -> Job:
    return Job(
        id=row.id,
        created=row.created,
        status=row.status,
        request=json.loads(row.request),
        result=json.loads(row.result) if row.result else None,
        error=json.loads(row.error) if row.error else None,
        finished=row.finished,
        owner=row.owner,
        fence=row.fence,
        deaths=row.deaths,
    )


def _event(row: Any) -> Event:
    return Event(
        key=row.key,
        message=row.message,
        level=row.level,
        data=json.loads(row.data) if row.data else None,
        number=row.number,
        created=row.created,
    )

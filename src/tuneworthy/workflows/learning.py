"""The learning curve: a trained arm is tried on some of the rows before all of them are paid for.

Everything here is seen on dev rows. What is forecast is what the sealed rows will say.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tuneworthy import store
from tuneworthy.arms import ARMS, Fitted
from tuneworthy.arms.base import scored, ticker
from tuneworthy.arms.choosing import looks
from tuneworthy.arms.training import SWEEP_ROWS, Trained
from tuneworthy.decision.forecast import Forecast, Point, chance_of_stopping, forecast
from tuneworthy.errors import TrainingDiverged
from tuneworthy.evaluation.statistics import standard_error
from tuneworthy.store import RunFolder
from tuneworthy.workflows.budgeting import measuring_seconds
from tuneworthy.workflows.session import Session

SHARES = (1 / 8, 1 / 4, 1 / 2)
FEWEST_ROWS = 16
"""No training on fewer rows: it would tell nothing."""
CONFIDENCE = 0.95
"""An arm is stopped when it cannot come within the margin of the best with this probability."""
STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Stop:
    """Why an arm is not trained on all rows: `stopped.json`."""

    arm: str
    at: float
    """Share of the training rows that were tried."""
    rows: int
    all_rows: int
    predicted: float
    interval: tuple[float, float]
    chance: float
    """Of coming within the margin of the best arm so far, on dev."""
    best: str
    best_score: float
    margin: float

    @property
    def reason(self) -> str:
        low, high = self.interval
        return (
            f"{STOPPED} after {self.rows:,} of {self.all_rows:,} rows: the forecast for all of them "
            f"is {self.predicted:.3f} on dev (80 % band {low:.3f} to {high:.3f}, estimate), and "
            f"{self.best} has {self.best_score:.3f}"
        )


def stop_file(folder: RunFolder, arm: str) -> Path:
    return folder.arm(arm) / "stopped.json"


def stops(folder: RunFolder) -> list[Stop]:
    """The arms that their forecasts stopped and that were not trained to the end since."""
    found = []
    for name in ARMS:
        path = stop_file(folder, name)
        if path.exists() and not folder.fit(name).exists():
            record = store.read_json(path)
            found.append(Stop(**{**record, "interval": tuple(record["interval"])}))
    return found


def try_on_parts(session: Session, arm: Trained, deadline: float | None) -> str | None:
    """Train on an eighth, a quarter, half of the rows; why the arm was stopped, None if it was not.

    As long as the next part may be expected to save more than it takes.
    Steps that an interrupted run has done are not done again; whether they stop the arm is judged
    anew, as the margin and the arms beside it may be others now.
    """
    stop_file(session.folder, arm.name).unlink(missing_ok=True)
    best = best_on_dev(session, but=arm.name)
    if best is None:
        return None
    known = _by_rows(session.folder, arm.name)
    points: list[dict[str, Any]] = []
    for share, rows in _parts(session):
        if points and rows not in known and not _worth(session, arm, points, rows, best):
            return None
        if not _trained(session, arm, share, rows, known, deadline):
            return None  # if that is for want of time, the caller says so
        points = [known[n] for n in sorted(known) if n <= rows]
        stop = _judged(session, arm.name, points, share, best)
        if stop is not None:
            store.write_json(stop_file(session.folder, arm.name), asdict(stop))
            return stop.reason
    return None


def _worth(
    session: Session,
    arm: Trained,
    points: Sequence[dict[str, Any]],
    rows: int,
    best: tuple[str, Sequence[float | None]],
) -> bool:
    """Whether training on so many rows may be expected to save more seconds than it takes.

    It saves the training on all rows and measuring, where it stops the arm.
    """
    _, theirs = best
    total, last = len(session.rows.train), points[-1]
    chance = chance_of_stopping(
        [_point(record, theirs) for record in points],
        *(rows, total, mean(theirs) - session.project.margin, CONFIDENCE),
    )
    row_seconds = last["seconds"] / last["rows"]
    takes, all_of_it = row_seconds * rows, row_seconds * total + measuring_seconds(session, arm)
    if chance * all_of_it > takes:
        return True
    session.say(
        f"{arm.name}: {rows:,} rows next would stop it with a chance of {chance:.2f} (estimate), "
        f"and take {takes:.0f} of {all_of_it:.0f} s: it is trained on all rows"
    )
    return False


def train_on_all_parts(session: Session, arm: Trained, deadline: float | None) -> None:
    """The whole learning curve, whatever it says; steps that are done are not done again."""
    known = _by_rows(session.folder, arm.name)
    for share, rows in _parts(session):
        try:
            if not _trained(session, arm, share, rows, known, deadline):
                return
        except TrainingDiverged as error:
            session.say(f"{arm.name} on {rows:,} rows: {error.what}")


def _parts(session: Session) -> list[tuple[float, int]]:
    """Shares of the training rows that are tried, and how many rows each is."""
    parts = [(share, round(share * len(session.rows.train))) for share in SHARES]
    return [(share, rows) for share, rows in parts if rows >= FEWEST_ROWS]


def _by_rows(folder: RunFolder, arm: str) -> dict[int, dict[str, Any]]:
    return {record["rows"]: record for record in curve(folder, arm)}


def _trained(
    session: Session,
    arm: Trained,
    share: float,
    rows: int,
    known: dict[int, dict[str, Any]],
    deadline: float | None,
) -> bool:
    """Have a training on so many rows among the known ones; False where time does not allow it.

    It does where all rows can be trained on after it too, unless they are already.
    """
    if deadline is not None and time.monotonic() > deadline:
        return False
    if rows in known:
        return True
    seconds = _seconds_per_row(session, arm, known, deadline)
    after = 0 if session.folder.fit(arm.name).exists() else len(session.rows.train)
    if deadline is not None and time.monotonic() + seconds * (rows + after) > deadline:
        session.say(f"{arm.name}: no time for parts of the rows beside all of them")
        return False
    record = {"share": share, **arm.step(session.task(arm.name, deadline), rows)}
    if record["stopped"] == "deadline":
        return False
    store.append_jsonl(session.folder.curve(arm.name), [record])
    known[rows] = record
    return True


def _seconds_per_row(
    session: Session, arm: Trained, known: Mapping[int, Any], deadline: float | None
) -> float:
    """What training takes at most for each row, all epochs: as in the last step, or the sweep.

    Both also loaded the base and answered or evaluated dev. 0 where nothing is known.
    """
    if known:
        return float(known[max(known)]["seconds"]) / max(known)
    settings, sweep = arm.settled(session.task(arm.name, deadline))
    if not sweep["candidates"]:
        return 0.0
    usual = statistics.median(candidate["seconds"] for candidate in sweep["candidates"])
    return settings.epochs * usual / min(SWEEP_ROWS, len(session.rows.train))


def _judged(
    session: Session,
    arm: str,
    points: Sequence[dict[str, Any]],
    share: float,
    best: tuple[str, Sequence[float | None]],
) -> Stop | None:
    """A stop, where it is too unlikely to come within the margin of the best."""
    name, theirs = best
    total, margin = len(session.rows.train), session.project.margin
    expected = forecast([_point(record, theirs) for record in points], total)
    level, now = mean(theirs), _point(points[-1], theirs)
    shown = f"{arm} on {now.rows} rows: {now.value:.3f} on dev"
    if expected is None:
        session.say(f"{shown}, where {name} has {level:.3f}; too early for a forecast")
        return None
    chance = expected.chance_of(level - margin)
    low, high = expected.interval
    session.say(
        f"{shown}; forecast for {total:,} rows {expected.predicted:.3f} "
        f"[{low:.3f}, {high:.3f}] (estimate), {name} has {level:.3f}"
    )
    if chance >= 1 - CONFIDENCE:
        return None
    return Stop(
        arm=arm,
        at=share,
        rows=points[-1]["rows"],
        all_rows=total,
        predicted=expected.predicted,
        interval=expected.interval,
        chance=chance,
        best=name,
        best_score=level,
        margin=margin,
    )


def best_on_dev(session: Session, but: str) -> tuple[str, Sequence[float | None]] | None:
    """The fitted arm with the highest score on dev, and its scores row by row.

    Compared on the rows of a first look, which all arms have answered; the rest may be None. Where a
    budget presses, no arm is asked for answers that were not needed to choose, if others have them.
    """
    first, _ = looks(len(session.rows.dev))
    names = [name for name in ARMS if name != but and session.folder.measured(name).exists()]
    if not names:
        return None
    if session.deadline is not None:
        names = [name for name in names if _answered_dev(session, name)] or names
    scored = {name: scores_on_dev(session, name) for name in names}
    name = max(scored, key=lambda n: mean([scored[n][row] for row in first]))
    return name, scored[name]


def _answered_dev(session: Session, name: str) -> bool:
    record = session.fit_record(name)
    return bool(record and record.get("dev_scores")) or _dev_file(session, name).exists()


def _dev_file(session: Session, name: str) -> Path:
    return session.folder.arm(name) / "dev.json"


def scores_on_dev(session: Session, name: str) -> Sequence[float | None]:
    """A fitted arm's score on each dev row, as far as fitting it answered them.

    Where it answered too few, those of a first look are answered now. None for the others.
    """
    path, record = _dev_file(session, name), session.fit_record(name)
    assert record
    if record.get("dev_scores"):
        return record["dev_scores"]
    if not path.exists():
        began, task = time.monotonic(), session.task(name)
        first, _ = looks(len(task.dev))
        rows = [task.dev[row] for row in first]
        fitted: Fitted = ARMS[name].restore(task, record)
        tick = ticker(session.journal, name, "answering dev", len(rows))
        found = dict(zip(first, scored(task, rows, fitted.answer([e.prompt for e in rows], tick))))
        scores = [found.get(row) for row in range(len(task.dev))]
        store.write_json(path, {"scores": scores, "seconds": time.monotonic() - began})
    scores_found: list[float | None] = store.read_json(path)["scores"]
    return scores_found


def forecasts(folder: RunFolder, train_rows: int, test_rows: int) -> list[dict[str, Any]]:
    """Every forecast that the learning curves allow, of score and loss, with what came true."""
    found = []
    for name in ARMS:
        if steps := curve(folder, name):
            found += foreseen(name, steps, _outcome(folder, name), train_rows, test_rows)
    return found


def foreseen(
    arm: str,
    steps: Sequence[Mapping[str, Any]],
    outcome: Mapping[str, Any],
    train_rows: int,
    test_rows: int,
) -> list[dict[str, Any]]:
    """At each step of a learning curve for all rows; after these, for four times as many.

    A step has `share`, `rows`, `dev_scores` and `dev_loss`; the outcome of all rows the `scores` of
    the sealed ones, and `loss`, on dev. It is empty where it is not known.
    """
    found = []
    score = mean(outcome["scores"]) if outcome else None
    came = {"score": score, "loss": outcome.get("loss")}
    for last in range(1, len(steps)):
        found += _forecast_both(arm, steps[: last + 1], train_rows, test_rows, came)
    if outcome:
        # The sealed score itself is where more rows would start from.
        whole = {
            "share": 1.0,
            "rows": train_rows,
            "dev_scores": outcome["scores"],
            "dev_loss": outcome["loss"],
        }
        beyond = {"score": None, "loss": None}
        found += _forecast_both(arm, [*steps, whole], 4 * train_rows, test_rows, beyond)
    return found


def _forecast_both(
    arm: str,
    steps: Sequence[Mapping[str, Any]],
    rows: int,
    test_rows: int,
    came: Mapping[str, Any],
) -> list[dict[str, Any]]:
    scores = [_point(record) for record in steps]
    losses = [Point(record["rows"], record["dev_loss"]) for record in steps]
    last = scores[-1].value
    # The sealed rows are a sample too.
    sampling = math.sqrt(max(last * (1 - last), 0.01) / max(1, test_rows))
    both: list[tuple[str, Forecast | None]] = [
        ("score", forecast(scores, rows, test_error=sampling)),
        ("loss", forecast(losses, rows, "loss")),
    ]
    return [
        {
            "arm": arm,
            "at": steps[-1]["share"],
            "rows": rows,
            "of": of,
            "predicted": expected.predicted if expected else None,
            "interval": expected and _shown(expected, test_rows),
            "realised": came[of],
        }
        for of, expected in both
    ]


def _shown(expected: Forecast, test_rows: int) -> list[float]:
    """The band; of a score in whole test rows, outwards: no score lies between two of them."""
    low, high = expected.interval
    if expected.of == "loss":
        return [low, high]
    return [math.floor(low * test_rows) / test_rows, math.ceil(high * test_rows) / test_rows]


def _outcome(folder: RunFolder, name: str) -> dict[str, Any]:
    """What training on all rows came to: scores of the sealed rows, loss on dev. Empty if it did not."""
    fit, measured = folder.fit(name), folder.measured(name)
    if not fit.exists() or not measured.exists():
        return {}
    training = store.read_json(fit)["training"]
    if training["stopped"] == "deadline" or not store.read_json(measured)["complete"]:
        return {}
    latest = {r["id"]: r["score"] for r in store.read_jsonl(folder.predictions(name))}
    scores = [score for score in latest.values() if score is not None]
    return {"scores": scores, "loss": training["dev_loss"]} if scores else {}


def curve(folder: RunFolder, arm: str) -> list[dict[str, Any]]:
    """What training on parts of the rows came to, the smallest first."""
    return sorted(store.read_jsonl(folder.curve(arm)), key=lambda record: record["rows"])


def _point(record: Mapping[str, Any], against: Sequence[float | None] | None = None) -> Point:
    """Mean score on dev and its standard error; that of the paired difference where one is given."""
    pairs = [
        (mine, None if against is None else other)
        for mine, other in zip(record["dev_scores"], against or record["dev_scores"])
        if mine is not None and other is not None
    ]
    values = [mine for mine, _ in pairs]
    varying = [mine - (other or 0.0) for mine, other in pairs]
    return Point(record["rows"], mean(values), standard_error(varying))


def mean(scores: Sequence[float | None]) -> float:
    known = [score for score in scores if score is not None]
    return statistics.fmean(known) if known else 0.0

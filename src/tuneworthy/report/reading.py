"""What a run folder says, read once; a run that was interrupted leaves parts of it None."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tuneworthy.config import ARM_NAMES
from tuneworthy.store import RunFolder, read_json, read_jsonl

Record = dict[str, Any]


@dataclass(frozen=True)
class ArmRecords:
    """One arm's files; predictions by row id."""

    name: str
    predictions: dict[str, Record]
    fit: Record | None
    figures: Record | None = None
    """What the metric says beside the score; see `evaluation.metrics.summary`."""
    steps: tuple[Record, ...] = ()
    """Trainings on parts of the rows, in the order they were made."""
    learned: tuple[Record, ...] = ()
    """The steps of the training on all rows."""


@dataclass(frozen=True)
class RunRecords:
    """All files of a run that the report shows. `decision` is None for an unfinished run."""

    name: str
    config: Record
    decision: Record | None
    findings: list[Record]
    test_rows: list[Record]
    ledger: list[Record]
    seal: Record | None
    arms: list[ArmRecords]


class Tally(NamedTuple):
    """Rows on which one arm scored higher, lower, and the same as another; both measured."""

    wins: int
    losses: int
    ties: int


class Drop(NamedTuple):
    """Input rows left out for one kind of reason, with the first as an example."""

    kind: str
    rows: int
    example: str


def read_run(run: RunFolder) -> RunRecords:
    """Everything the report needs. Raises StorageError without `config.json` or for a torn file."""
    config = read_json(run.config)
    decision = _if_there(run.decision)
    if decision is not None:  # runs decided before these were told apart lack them
        decision = {"also": [], "would_change": None, **decision}
    arms = [
        ArmRecords(
            name=name,
            predictions={line["id"]: line for line in read_jsonl(run.predictions(name))},
            fit=_if_there(run.fit(name)),
            figures=(_if_there(run.measured(name)) or {"figures": None})["figures"],
            steps=tuple(read_jsonl(run.curve(name))),
            learned=tuple(read_jsonl(run.training_log(name))),
        )
        for name in run.arms
    ]
    best_first = {} if decision is None else {a["arm"]: a["score"] for a in decision["arms"]}
    arms.sort(key=lambda arm: _place(arm.name, best_first))
    return RunRecords(
        name=run.path.name,
        config=config,
        decision=decision,
        findings=(_if_there(run.checks) or {"findings": []})["findings"],
        test_rows=[row for row in read_jsonl(run.rows) if row["split"] == "test"],
        ledger=read_jsonl(run.ledger),
        seal=_if_there(run.seal),
        arms=arms,
    )


def tallies(arms: list[ArmRecords]) -> dict[tuple[str, str], Tally]:
    """For every ordered pair of arms, the rows that the first wins, loses and ties."""
    return {(a.name, b.name): _tally(a, b) for a in arms for b in arms if a.name != b.name}


def drops(ledger: list[Record]) -> list[Drop]:
    """Why input rows were left out, most frequent first."""
    kinds = Counter(line["dropped"] for line in ledger if line["dropped"])
    first = {line["dropped"]: line for line in reversed(ledger)}
    return [
        Drop(str(kind), number, f"{first[kind]['source']}: {first[kind]['reason']}")
        for kind, number in kinds.most_common()
    ]


def mean_score(arm: ArmRecords) -> float | None:
    """Mean over the rows scored so far; None before the first."""
    return mean([line["score"] for line in arm.predictions.values()])


def mean(scores: Iterable[float | None]) -> float | None:
    """Of those that are known; None if none is."""
    known = [score for score in scores if score is not None]
    return sum(known) / len(known) if known else None


def _tally(a: ArmRecords, b: ArmRecords) -> Tally:
    wins = losses = ties = 0
    for row, ours in a.predictions.items():
        sign = compared(ours, b.predictions.get(row))
        wins += sign == 1
        losses += sign == -1
        ties += sign == 0
    return Tally(wins, losses, ties)


def compared(ours: Record | None, theirs: Record | None) -> int | None:
    """1 if the first of two predictions scored higher, -1 if lower, 0 if the same.

    None where one of them has no score.
    """
    if not ours or not theirs or ours["score"] is None or theirs["score"] is None:
        return None
    difference = ours["score"] - theirs["score"]
    # Graded scores are means of floats: equal answers may differ in the last digit.
    return 0 if abs(difference) < 1e-9 else 1 if difference > 0 else -1


def _place(name: str, scores: dict[str, float | None]) -> tuple[bool, float, int, str]:
    """Best score first as in the decision's tables; without scores, cheapest first."""
    score = scores.get(name)
    rank = ARM_NAMES.index(name) if name in ARM_NAMES else len(ARM_NAMES)
    return (score is None, -(score or 0.0), rank if score is None else 0, name)


def _if_there(path: Path) -> Any:
    return read_json(path) if path.exists() else None

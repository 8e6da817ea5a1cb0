"""What a task's two decisions came to: read off a run folder once, judged as often as one likes."""

from __future__ import annotations

import hashlib
import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tuneworthy import store
from tuneworthy.arms import ARMS, Arm
from tuneworthy.arms.training import Trained
from tuneworthy.data import ledger
from tuneworthy.evaluation.statistics import ALPHA, Difference, compare
from tuneworthy.store import RunFolder
from tuneworthy.workflows.learning import curve, foreseen
from tuneworthy.workflows.spending import seeds

Outcome = dict[str, Any]
ASIDE_COUNT = 3
DECIMALS = 4
"""Of stored scores and seconds."""


@dataclass(frozen=True, slots=True)
class Task:
    """An example that is decided. `facts`: its answers are facts that stand in documents.

    `seen`: there were results of it before this benchmark. `also`: arms that only the run to the
    end measures, beside those of `arms: auto`, which the decision gets; as their prompts carry
    examples into training, they are the dearest, and trained once. `settings` take the place of
    those in the example's project file.
    """

    facts: bool = False
    seen: bool = False
    also: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def within_budget(self) -> dict[str, Any]:
        return {"arms": "auto", **self.settings}

    @property
    def to_the_end(self) -> dict[str, Any]:
        arms = [name for name, arm in ARMS.items() if _in_auto(arm) or (self.facts and _reads(arm))]
        return {**self.settings, "arms": arms, "exhaustive": True, "budget": "none"}


def _in_auto(arm: Arm) -> bool:
    """Whether `arms: auto` trains or tries it whatever the rows are like."""
    return not (isinstance(arm, Trained) and arm.carries)


def _reads(arm: Arm) -> bool:
    """Whether it is trained to answer from documents."""
    return isinstance(arm, Trained) and arm.carries == "rag"


_SIZES = {"data.train": 400, "data.dev": 100, "data.test": 200}
TASKS: dict[str, Task] = {
    "home-commands": Task(seen=True, also=("few-shot+lora",), settings={**_SIZES, "budget": "12m"}),
    "phpdoc": Task(seen=True, settings={**_SIZES, "budget": "12m"}),
    "pokedex": Task(facts=True, seen=True, settings={**_SIZES, "budget": "12m"}),
    "php-summary": Task(settings={"budget": "12m"}),
    "wordnet": Task(also=("few-shot+lora",), settings={"budget": "12m"}),
    "log-lines": Task(also=("few-shot+lora",), settings={"budget": "12m"}),
    "aws-limits": Task(facts=True, settings={"budget": "12m"}),
    "numpydoc": Task(settings={"budget": "20m"}),
}


def aside(tasks: Mapping[str, Task] = TASKS) -> tuple[str, ...]:
    """The tasks that nothing is tuned on: of those never seen, the smallest by the name's sha256."""
    unseen = [name for name, task in tasks.items() if not task.seen]
    return tuple(sorted(unseen, key=lambda name: hashlib.sha256(name.encode()).hexdigest()))[
        :ASIDE_COUNT
    ]


# Reading


def identity(run: RunFolder) -> str:
    """What two runs must share to be held against each other: test rows, base and metric."""
    config = store.read_json(run.config)
    seal = store.read_json(run.seal)["sha256"]
    return store.sha256_json([seal, config["base"]["sha256"], config["metric"]["name"]])


def truth(run: RunFolder) -> Outcome:
    """Every arm that was measured to the end, with the scores of each row and seed."""
    rows = ledger.read_rows_file(run.rows)
    numbers: dict[str, int] = {}
    for example in rows.test:
        numbers.setdefault(example.cluster, len(numbers))
    ids = [example.id for example in rows.test]
    arms = {
        name: {
            "trained": ARMS[name].trained,
            "seeds": [
                _training(run, place, ids)
                for place in (name, *seeds(run, name))
                if _complete(run, place)
            ],
            "curve": [_step(record) for record in curve(run, name)],
        }
        for name in ARMS
        if _complete(run, name)
    }
    return {
        "rows": {"train": len(rows.train), "dev": len(rows.dev), "test": len(rows.test)},
        "clusters": [numbers[example.cluster] for example in rows.test],
        "arms": arms,
    }


def _complete(run: RunFolder, place: str) -> bool:
    path = run.measured(place)
    return path.exists() and bool(store.read_json(path)["complete"])


def _training(run: RunFolder, place: str, ids: Sequence[str]) -> Outcome:
    """One training and measurement of an arm; scores in the order of the sealed rows."""
    fit = store.read_json(run.fit(place))
    latest = {record["id"]: record["score"] for record in store.read_jsonl(run.predictions(place))}
    return {
        "scores": [_rounded(latest[id_]) for id_ in ids],
        "dev_loss": _rounded(fit["training"]["dev_loss"]) if fit["training"] else None,
        "fit_seconds": _rounded(fit["seconds"]),
        "measure_seconds": _rounded(store.read_json(run.measured(place))["seconds"]),
    }


def _step(record: Mapping[str, Any]) -> Outcome:
    """One training on a part of the rows, as forecasts read it."""
    return {
        **{name: record[name] for name in ("share", "rows")},
        "dev_scores": [_rounded(score) for score in record["dev_scores"]],
        "dev_loss": _rounded(record["dev_loss"]),
        "seconds": _rounded(record["seconds"]),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, DECIMALS)


def verdict(budgeted: Mapping[str, Any]) -> Outcome:
    """What the budgeted decision said, foretold and spent."""
    decision = budgeted["decision"]
    spent = decision["spent"]
    return {
        **{name: decision[name] for name in ("verdict", "arm", "fine_tune")},
        **{name: _rounded(budgeted[name]) for name in ("budget_seconds", "wall_seconds")},
        "spent_seconds": _rounded(spent["seconds"]),
        "exhaustive_seconds_estimate": _rounded(spent["exhaustive_seconds_estimate"]),
        "spent": [{**piece, "seconds": _rounded(piece["seconds"])} for piece in spent["by"]],
    }


def write(path: Path, outcome: Outcome) -> None:
    """As JSON, a list of numbers on one line."""
    text = json.dumps(outcome, indent=1, ensure_ascii=False)
    text = re.sub(r"\[\n[\s\d.,enul-]*\]", lambda found: re.sub(r"\s", "", found[0]), text)
    store.write_text(path, text + "\n")


# Judging


@dataclass(frozen=True, slots=True)
class Judged:
    """A task's budgeted decision beside what running everything to its end has shown."""

    verdict: str
    arm: str | None
    best: str
    difference: Difference | None
    """The best arm minus the chosen one; None if they are one, or nothing was chosen."""
    right: bool
    share: float
    """Seconds spent, of those that running everything to its end takes."""
    share_of_auto: float
    """The same, where only the arms of `arms: auto` are run to their end, for these rows."""
    of_budget: float | None
    """Seconds that it took, of its budget; None without one."""
    held: dict[str, list[bool]]
    """Score or loss -> whether each forecast's band held what came true."""
    unknown: int
    """Forecasts that said they do not know."""
    tuned_on_facts: Literal["closed-book", "with documents"] | None
    """How a task of facts has fine-tuning recommended: with the facts in the weights, or beside them."""


def judge(outcome: Outcome, facts: bool) -> Judged:
    """Whether the budgeted decision was right, what it cost, which forecasts held."""
    arms, decided = outcome["arms"], outcome["budgeted"]
    rows = {name: _row_means(arm) for name, arm in arms.items()}
    best = max(rows, key=lambda name: _mean(rows[name]))
    chosen = decided["arm"]
    difference = None
    if chosen in rows and chosen != best:
        difference = _compared(rows[best], rows[chosen], outcome["clusters"])
    told = [(item["of"], held(item)) for item in forecasts(outcome)]
    of_auto = {name for name in arms if _in_auto(ARMS[name])}
    of_auto |= {piece["arm"] for piece in decided["spent"]}  # what the rows called for as well
    return Judged(
        verdict=decided["verdict"],
        arm=chosen,
        best=best,
        difference=difference,
        right=chosen == best or (difference is not None and difference.p >= ALPHA),
        share=decided["spent_seconds"] / exhaustive_seconds(arms),
        share_of_auto=decided["spent_seconds"]
        / exhaustive_seconds({name: arm for name, arm in arms.items() if name in of_auto}),
        of_budget=decided["wall_seconds"] / decided["budget_seconds"]
        if decided["budget_seconds"]
        else None,
        held={
            of: [hit for what, hit in told if what == of and hit is not None]
            for of in ("score", "loss")
        },
        unknown=sum(hit is None for _, hit in told),
        tuned_on_facts=_tuned(chosen) if facts and decided["fine_tune"] else None,
    )


def _tuned(name: str) -> Literal["closed-book", "with documents"]:
    return "with documents" if _reads(ARMS[name]) else "closed-book"


def exhaustive_seconds(arms: Mapping[str, Any]) -> float:
    """Of fitting and measuring every arm with every seed."""
    every = [training for arm in arms.values() for training in arm["seeds"]]
    return sum(training["fit_seconds"] + training["measure_seconds"] for training in every)


def _row_means(arm: Mapping[str, Any]) -> list[float | None]:
    """Each row's score, the mean over the arm's seeds; None where no seed has one."""
    columns = zip(*(training["scores"] for training in arm["seeds"]), strict=True)
    known = ([score for score in column if score is not None] for column in columns)
    return [statistics.fmean(scores) if scores else None for scores in known]


def _mean(scores: Sequence[float | None]) -> float:
    known = [score for score in scores if score is not None]
    return statistics.fmean(known) if known else 0.0


def _compared(
    a: Sequence[float | None], b: Sequence[float | None], clusters: Sequence[int]
) -> Difference | None:
    """a minus b on the rows that both have a score for, paired and clustered."""
    shared = [
        (x, y, c) for x, y, c in zip(a, b, clusters, strict=True) if x is not None and y is not None
    ]
    return compare([x for x, _, _ in shared], [y for _, y, _ in shared], [c for *_, c in shared])


def forecasts(outcome: Outcome) -> list[dict[str, Any]]:
    """What each arm's learning curve foretells of all rows, beside what the first seed came to."""
    rows, found = outcome["rows"], []
    for name, arm in outcome["arms"].items():
        if steps := arm.get("curve"):
            first = arm["seeds"][0]
            came = {"scores": first["scores"], "loss": first["dev_loss"]}
            found += foreseen(name, steps, came, rows["train"], rows["test"])
    # Of more rows than there are nobody knows what would come true.
    return [item for item in found if item["rows"] == rows["train"]]


def held(item: Mapping[str, Any]) -> bool | None:
    """Whether a forecast's band holds what came true; None where it said that it does not know."""
    if item["interval"] is None:
        return None
    low, high = item["interval"]
    return bool(low <= item["realised"] <= high)

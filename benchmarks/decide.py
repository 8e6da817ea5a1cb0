"""Decisions: what `tuneworthy decide` says within its budget, beside every arm run to its end.

Each task is decided as a user would decide it; then the same run goes on with all arms, all rows
and three seeds, which is the truth that the decision is held against. Takes hours, and can be
stopped and started again at any moment. See docs/guides/benchmarks.md.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import _common
from _common import BENCHMARKS, ContenderFailed, Event, Progress
from _outcomes import (
    TASKS,
    Judged,
    Outcome,
    Task,
    aside,
    forecasts,
    held,
    identity,
    judge,
    truth,
    verdict,
    write,
)

from tuneworthy import examples, load, store
from tuneworthy.store import RunFolder

RESULTS = BENCHMARKS / "results" / "decide"
OWN_PACKAGES = ("tuneworthy", "torch", "transformers", "peft")
BUDGETED_SECONDS, EXHAUSTIVE_SECONDS = 600.0, 1800.0
"""For the first estimate of the time left."""
PICTURE = 50
"""Letters from a score of 0 to one of 1."""


class Bench:
    """One task after the other; what is done is on disk and not done again."""

    def __init__(self, progress: Progress, work: Path, results: Path) -> None:
        self.progress, self.work, self.results = progress, work, results

    def task(self, name: str) -> None:
        """Decide within the budget, run everything to its end, store what came of it."""
        folder = self.work / name
        budgeted = self._budgeted(name, folder)
        path = folder / "truth.json"
        if not path.exists():
            task = TASKS[name]
            run = self._decide(f"{name} to the end", folder, task.to_the_end, task.also)
            _check_same(run, budgeted["run"], folder)
            store.write_json(path, truth(run))
        self.progress.skip(f"{name} to the end")
        self._store(name, store.read_json(path), budgeted)

    def budgeted_again(self, name: str) -> None:
        """Decide anew, with nothing measured before, beside the truth that is stored."""
        stored = read(self.results, name)
        if stored is None:
            raise ContenderFailed(
                f"nothing is stored of {name} to hold a decision against",
                hint=f"python benchmarks/decide.py --task {name}",
            )
        folder = self.work / f"{name}-again"
        found = self._budgeted(name, folder)
        if found["identity"] != stored["identity"]:
            raise ContenderFailed(
                f"{name} has other test rows, another base or metric than the truth that is stored",
                where=str(folder),
                hint=f"remove {self.work / name}, then python benchmarks/decide.py --task {name}",
            )
        self._store(name, {k: stored[k] for k in ("rows", "clusters", "arms")}, found)
        store.remove(folder)

    def _budgeted(self, name: str, folder: Path) -> Outcome:
        """The decision that a user gets, as it was stored or made now."""
        path = folder / "budgeted.json"
        if not path.exists():
            if not (folder / "tuneworthy.yaml").exists():
                examples.build(name, folder, self.progress.say)
            settings, began = TASKS[name].within_budget, time.monotonic()
            run = self._decide(f"{name} budgeted", folder, settings)
            found = {
                "run": run.path.name,
                "identity": identity(run),
                "decision": store.read_json(run.decision),
                "budget_seconds": _budget(folder, settings),
                "wall_seconds": time.monotonic() - began,
            }
            store.write_json(path, found)
        self.progress.skip(f"{name} budgeted")
        stored: Outcome = store.read_json(path)
        return stored

    def _decide(
        self,
        piece: str,
        folder: Path,
        settings: Mapping[str, Any],
        also: Sequence[str] = (),
    ) -> RunFolder:
        def on_event(event: Event) -> None:
            if "said" in event:
                self.progress.say(event["said"])

        self.progress.begin(piece)
        try:
            job = {"folder": str(folder), "settings": settings, "also": also}
            script = BENCHMARKS / "_decide_ours.py"
            done = _common.run(Path(sys.executable), script, job, self.progress, on_event)
        finally:
            self.progress.end()
        return RunFolder(Path(done["run"]))

    def _store(self, name: str, found: Outcome, budgeted: Outcome) -> None:
        outcome = {
            "version": 1,
            "task": name,
            "date": store.now(),
            "machine": _common.machine(),
            "versions": _common.versions(OWN_PACKAGES),
            "identity": budgeted["identity"],
            **found,
            "budgeted": verdict(budgeted),
        }
        write(self.results / f"{name}.json", outcome)


def _budget(folder: Path, settings: Mapping[str, Any]) -> float | None:
    named = {name.replace(".", "__"): value for name, value in settings.items()}
    return load(folder, **named).budget


def _check_same(run: RunFolder, name: str, folder: Path) -> None:
    """Raise ContenderFailed where the second decision did not go on in the run of the first."""
    if run.path.name != name:
        raise ContenderFailed(
            f"went on in {run.path.name}, where the budgeted decision is in {name}: "
            "rows or settings have changed since",
            where=str(folder),
            hint=f"remove {folder} to begin anew",
        )


def read(results: Path, name: str) -> Outcome | None:
    """What is stored of a task, None if nothing is."""
    path = results / f"{name}.json"
    return store.read_json(path) if path.exists() else None


def stored(results: Path) -> dict[str, Outcome]:
    """What is stored of all tasks, in their order."""
    found = {name: read(results, name) for name in TASKS}
    return {name: outcome for name, outcome in found.items() if outcome is not None}


# The table


def table(
    outcomes: Mapping[str, Outcome],
    tasks: Mapping[str, Task] = TASKS,
) -> tuple[dict[str, Any], list[tuple[str, list[str], list[list[str]]]]]:
    """The figures of the tasks that were tuned on and of those kept aside, and tables of them.

    A pure function of the stored outcomes.
    """
    judged = {name: judge(outcome, tasks[name].facts) for name, outcome in outcomes.items()}
    kept = aside(tasks)
    parts = {
        "tuned": [found for name, found in judged.items() if name not in kept],
        "aside": [found for name, found in judged.items() if name in kept],
    }
    figures = {part: summary(found) for part, found in parts.items() if found}
    lines = [
        _line(name, "aside" if name in kept else "tuned", found) for name, found in judged.items()
    ]
    header = [
        "task",
        "used",
        "verdict",
        "best of all",
        "difference",
        "right",
        "spent",
        "of budget",
        "held",
    ]
    tables = [("each task", header, lines)]
    if figures:
        shown = [_shown(figure) for figure in figures.values()]
        rows = [[label, *cells] for label, *cells in zip(_LABELS, *shown, strict=True)]
        tables.append(("all tasks", ["figure", *figures], rows))
    return _workloads(figures), tables


def summary(found: Sequence[Judged]) -> dict[str, Any]:
    """Counts and shares over tasks."""
    hits = {of: [hit for task in found for hit in task.held[of]] for of in ("score", "loss")}
    every = [hit for some in hits.values() for hit in some]
    return {
        "tasks": len(found),
        "right": sum(task.right for task in found),
        "share_median": statistics.median(task.share for task in found),
        "share_max": max(task.share for task in found),
        "share_of_auto_median": statistics.median(task.share_of_auto for task in found),
        "share_of_auto_max": max(task.share_of_auto for task in found),
        "of_budget_max": max((task.of_budget for task in found if task.of_budget), default=None),
        "forecasts": len(every),
        "held": sum(every),
        "held_of_score": [sum(hits["score"]), len(hits["score"])],
        "held_of_loss": [sum(hits["loss"]), len(hits["loss"])],
        "unknown": sum(task.unknown for task in found),
        "tuned_on_facts": sum(task.tuned_on_facts == "closed-book" for task in found),
        "tuned_with_documents": sum(task.tuned_on_facts == "with documents" for task in found),
    }


_FORESEEN = (
    "forecasts whose 80 % band held",
    "of the score",
    "of the loss",
    "forecasts that said unknown",
)
_LABELS = (
    "verdict is the best arm, or not told apart from it",
    "seconds spent, share of exhaustive, median",
    "seconds spent, share of exhaustive, maximum",
    "share of exhaustive for the arms of auto alone, median",
    "share of exhaustive for the arms of auto alone, maximum",
    "time taken, share of the budget, maximum",
    *_FORESEEN,
    '"fine-tune" recommended on a facts task, to hold the facts',
    '"fine-tune" recommended on a facts task, to read documents',
)


def _shown(figure: Mapping[str, Any]) -> list[str]:
    return [
        f"{figure['right']} of {figure['tasks']}",
        f"{figure['share_median']:.0%}",
        f"{figure['share_max']:.0%}",
        f"{figure['share_of_auto_median']:.0%}",
        f"{figure['share_of_auto_max']:.0%}",
        "none" if figure["of_budget_max"] is None else f"{figure['of_budget_max']:.0%}",
        _counted(figure["held"], figure["forecasts"]),
        _counted(*figure["held_of_score"]),
        _counted(*figure["held_of_loss"]),
        str(figure["unknown"]),
        str(figure["tuned_on_facts"]),
        str(figure["tuned_with_documents"]),
    ]


def _counted(hits: int, count: int) -> str:
    return f"{hits} of {count} ({hits / count:.0%})" if count else "none was made"


def _line(name: str, used: str, found: Judged) -> list[str]:
    difference = found.difference
    hits = [hit for every in found.held.values() for hit in every]
    return [
        name,
        used,
        f"{found.verdict}: {found.arm or 'none'}",
        found.best,
        f"{difference.value:.3f} [{difference.low:.3f}, {difference.high:.3f}]"
        if difference
        else "the same arm"
        if found.arm == found.best
        else "not measurable",
        "yes" if found.right else "no",
        f"{found.share:.0%}",
        "none" if found.of_budget is None else f"{found.of_budget:.0%}",
        f"{sum(hits)} of {len(hits)}",
    ]


def calibration() -> str:
    """Markdown: every forecast that the stored curves allow today, beside what came true."""
    outcomes = stored(RESULTS)
    _, tables = table(outcomes)
    figures = [
        _common.markdown(header, [row for row in rows if row[0] in _FORESEEN])
        for title, header, rows in tables
        if title == "all tasks"
    ]
    made = [(name, item) for name, found in outcomes.items() for item in forecasts(found)]
    picture = [_drawn(name, item) for name, item in made if item["interval"]]
    header = ["task", "arm", "tried on", "of", "foreseen", "80 % band", "came true", "held"]
    each = _common.markdown(header, [_foreseen(name, item) for name, item in made])
    return "\n".join([*figures, "```text", *filter(None, picture), "```\n", each])


def _drawn(name: str, item: Mapping[str, Any]) -> str:
    """A score's band, on a line from 0 to 1: ● came true within it, ○ outside. Nothing of a loss."""
    if item["of"] != "score":
        return ""
    low, high, came = (round(PICTURE * x) for x in (*item["interval"], item["realised"]))
    line = [" "] * (PICTURE + 1)
    line[low : high + 1] = "─" * (high + 1 - low)
    line[low], line[high] = "├", "┤"
    line[came] = "●" if held(item) else "○"
    return f"{name + ' ' + item['arm']:28}{item['at']:6.1%} │{''.join(line)}│"


def _foreseen(name: str, item: Mapping[str, Any]) -> list[str]:
    start = [name, item["arm"], f"{item['at']:.1%}", item["of"]]
    came = f"{item['realised']:.3f}"
    if item["interval"] is None:
        return [*start, "unknown", "", came, ""]
    low, high = item["interval"]
    right = "yes" if held(item) else "**no**"
    return [*start, f"{item['predicted']:.3f}", f"{low:.3f} to {high:.3f}", came, right]


def _workloads(figures: Mapping[str, Any]) -> dict[str, Any]:
    """In the form of every benchmark; the peer is who runs everything to its end."""
    found = {}
    for part, figure in figures.items():
        found[f"{part}-verdicts"] = _common.workload(
            figure["right"] / figure["tasks"], {}, "share of verdicts that are right", **figure
        )
        found[f"{part}-spent"] = _common.workload(
            figure["share_median"],
            {"every arm to its end": 1.0},
            "share of the exhaustive seconds, median",
            lower_is_better=True,
            maximum=figure["share_max"],
        )
        if figure["forecasts"]:
            found[f"{part}-forecasts"] = _common.workload(
                figure["held"] / figure["forecasts"], {}, "share of 80 % bands that held"
            )
    return found


def show(outcomes: Mapping[str, Outcome]) -> None:
    """Print the table; record it if it is of all tasks and was not recorded before."""
    found, tables = table(outcomes)
    shown = [_common.show(f"decide: {title}", header, rows) for title, header, rows in tables]
    missing = [name for name in TASKS if name not in outcomes]
    if missing:
        print(f"not there yet, so nothing is recorded: {', '.join(missing)}", file=sys.stderr)
        return
    newest = max(outcomes.values(), key=lambda outcome: outcome["date"])
    if _common.recorded("decide", BENCHMARKS) == found:
        print("these figures are recorded already", file=sys.stderr)
        return
    _common.record("decide", found, shown, newest["versions"], about=newest["machine"])


# Running


def planned(names: Sequence[str], again: bool, results: Path) -> dict[str, float]:
    """Pieces of work and a first guess of their seconds; what is stored is not run again."""
    pieces: dict[str, float] = {}
    for name in names:
        if again or read(results, name) is None:
            pieces[f"{name} budgeted"] = BUDGETED_SECONDS
            if not again:
                pieces[f"{name} to the end"] = EXHAUSTIVE_SECONDS
    return pieces


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=TASKS, help="only this one")
    parser.add_argument(
        "--only",
        choices=["budgeted"],
        help="decide anew beside the stored truth, for a decision that has changed",
    )
    parser.add_argument("--table", action="store_true", help="from what is stored; runs nothing")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parsed(arguments)
    # The process of a decision ends with this one, whoever ends it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    names = [options.task] if options.task else list(TASKS)
    again = options.only == "budgeted"
    progress = Progress({} if options.table else planned(names, again, RESULTS))
    with _common.ending():
        if not options.table:
            bench = Bench(progress, _common.workspace() / "decide", RESULTS)
            for name in names:
                if again:
                    bench.budgeted_again(name)
                elif read(RESULTS, name) is None:
                    bench.task(name)
        show(stored(RESULTS))


if __name__ == "__main__":
    main()

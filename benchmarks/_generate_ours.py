"""Answers and scores of Tuneworthy's own engine; told what to do by a job, see `_common`."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

from _workloads import BASE

from tuneworthy.engine import open_engine
from tuneworthy.types import Decoding

TELL_EVERY = 2.0
"""Seconds between two words about how far it is."""


def tell(event: dict[str, Any]) -> None:
    print("@", json.dumps(event), flush=True)


def compute_in(number_format: str) -> None:
    """Have the engine choose this number format, whatever is fastest here."""
    import torch

    from tuneworthy.engine import hardware

    chosen = hardware.NumberFormat("cpu", getattr(torch, number_format), "the benchmark says so")
    hardware.number_format = lambda: chosen


class Teller:
    """Tells how many rows are answered, now and then."""

    def __init__(self, rows: int) -> None:
        self.rows, self.answered, self.spoke = rows, 0, time.perf_counter()

    def __call__(self, position: int, answer: Any) -> None:
        self.answered += 1
        if time.perf_counter() - self.spoke >= TELL_EVERY:
            self.spoke = time.perf_counter()
            tell({"rows": self.answered, "of": self.rows})


def work(engine: Any, rows: list[dict[str, Any]], job: dict[str, Any]) -> dict[str, Any]:
    """Answers as pairs of text and tokens, or log-probabilities; and the seconds they took."""
    ids, labels = [row["ids"] for row in rows], [row["labels"] for row in rows]
    start = time.perf_counter()
    if job["workload"] == "labels":
        scores = engine.score_ids(ids, labels)
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "scores": [[s.log_probability for s in row] for row in scores]}
    stop_ids, decoding = frozenset(job["stop_ids"]), Decoding(max_tokens=job["tokens"])
    answers = engine.answer_ids(ids, decoding, stop_ids=stop_ids, on_answer=Teller(len(rows)))
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "answers": [[a.text, a.output_tokens] for a in answers]}


def main(path: str) -> None:
    job = json.loads(Path(path).read_text("utf-8"))
    rows = json.loads(Path(job["rows"]).read_text("utf-8"))
    if job["number_format"]:
        compute_in(job["number_format"])
    start = time.perf_counter()
    engine = open_engine(BASE, Path(path).parent, lambda text: print(text, file=sys.stderr))
    started = time.perf_counter() - start
    work(engine, rows["warm"], job)
    done = work(engine, rows[job["part"]], job)
    tell(
        {
            "done": {
                **done,
                "start_seconds": started,
                "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                "number_format": engine.base.details["number_format"],
                "threads": engine.base.details["threads"],
            }
        }
    )


if __name__ == "__main__":
    main(sys.argv[1])

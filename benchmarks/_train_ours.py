"""One training run with Tuneworthy's own engine; told what to do by a job, see `_common`."""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _workloads import BASE

from tuneworthy.engine import open_engine
from tuneworthy.types import Message, TrainingSettings

NEVER = 1_000_000


def tell(event: dict[str, Any]) -> None:
    print("@", json.dumps(event), flush=True)


def pairs(rows: list[dict[str, Any]]) -> list[Any]:
    return [
        ((Message("system", row["system"]), Message("user", row["user"])), row["completion"])
        for row in rows
    ]


def on_report(kind: str, fields: dict[str, Any]) -> None:
    """Pass on the steps; what the engine says beside them is not ours to judge."""
    if "step_seconds" in fields:
        tell(
            {
                "step": fields["step"],
                "steps": fields["steps"],
                "seconds": fields["step_seconds"],
                "tokens": fields["step_tokens"],
                "computed": fields["computed_tokens"],
            }
        )


def product_rate(number_format: str, windows: int = 5, seconds: float = 0.4) -> float:
    """FLOP/s of products with the model's shapes, the best of some windows of time."""
    import torch

    rows, width, hidden = 2048, 576, 1536
    dtype = getattr(torch, number_format)
    left, right = torch.ones(rows, width, dtype=dtype), torch.ones(hidden, width, dtype=dtype)
    torch.nn.functional.linear(left, right)
    best = 0.0
    for _ in range(windows):
        count, start = 0, time.perf_counter()
        while (spent := time.perf_counter() - start) < seconds:
            torch.nn.functional.linear(left, right)
            count += 1
        best = max(best, 2 * rows * width * hidden * count / spent)
    return best


def main(path: str) -> None:
    import torch

    job = json.loads(Path(path).read_text("utf-8"))
    rows = json.loads(Path(job["rows"]).read_text("utf-8"))
    engine = open_engine(BASE, Path(path).parent, lambda text: print(text, file=sys.stderr))
    dev = pairs(rows["dev"][: job["dev_rows"]])

    def settings(evaluations: int) -> TrainingSettings:
        return TrainingSettings(
            method="lora",
            learning_rate=job["learning_rate"],
            epochs=1,
            batch_rows=job["batch_rows"],
            rank=16,
            alpha=32,
            warmup=0.0,
            evaluations_per_epoch=evaluations,
            patience=NEVER,
        )

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        warm, train = pairs(rows["warm"]), pairs(rows["train"])
        engine.train(warm, dev[:1], settings(1), folder / "warm", report=lambda *_: None)
        work = settings(job["evaluations"])
        trained = engine.train(train, dev, work, folder / "work", report=on_report)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    number_format = engine.base.details["number_format"]
    tell(
        {
            "done": {
                "peak_mb": peak,
                "number_format": number_format,
                "threads": torch.get_num_threads(),
                "products_per_second": product_rate(number_format),
                "dev_loss_before": trained.dev_loss_before,
                "dev_losses": {
                    int(past["step"]): past["dev_loss"] for past in trained.history if past["step"]
                },
            }
        }
    )


if __name__ == "__main__":
    main(sys.argv[1])

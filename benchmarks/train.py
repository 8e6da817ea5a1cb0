"""Training: LoRA on SmolLM2-135M, Tuneworthy's engine beside TRL's SFTTrainer.

Every contender runs in a process of its own, one after the other, on the same rows with the same
effective batch and learning rate. See docs/guides/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import _common
from _common import BENCHMARKS, ContenderFailed, Event, Progress, workspace
from _screening import Variant, finalists, screen
from _workloads import WORKLOADS, Row, Workload, open_rows, write

OURS = "tuneworthy"
OWN_PACKAGES = ("tuneworthy", "torch", "transformers", "peft")
PEER_PACKAGES = ("trl", "torch", "transformers", "peft", "accelerate")
NUMBER_FORMATS = ("bfloat16", "autocast", "float32")
ARRANGEMENTS = ("grouped", "packed")
LEARNING_RATE = 1e-3
SCREEN_TOKENS = 2_500
DEV_EVERY = 2
LOSS_STEPS = 8
"""Of a run to a loss, whatever the speed was measured on."""
FEW_ROWS, FEWER_DEV_ROWS = 4, 16
"""Dev rows of a run that only measures speed, and of one to a loss where rows are long: the clock
stands still while it evaluates."""
LIMIT_SECONDS = 300.0
"""Of training, after which the peer is not waited for to reach a loss."""
START_SLACK = 0.03
"""Nats by which dev losses of one model may differ between number formats."""
START_SECONDS, PEER_RATE, OUR_RATE = 20.0, 120.0, 550.0
"""For the first estimate of the time left: seconds to start a process, tokens/s."""


@dataclass
class Run:
    """What a contender told: a step each, and what it said in the end."""

    steps: list[Event] = field(default_factory=list)
    done: Event = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        return sum(step["tokens"] for step in self.steps)

    @property
    def seconds(self) -> float:
        return sum(step["seconds"] for step in self.steps)

    @property
    def rate(self) -> float:
        """Tokens of real input per second of training."""
        return self.tokens / self.seconds

    @property
    def evaluations(self) -> list[tuple[float, float]]:
        """Seconds of training so far, evaluations left out, and the dev loss after them."""
        found, clock = [], 0.0
        for step in self.steps:
            clock += step["seconds"]
            if step.get("dev_loss") is not None:
                found.append((clock, step["dev_loss"]))
        return found

    def seconds_to(self, loss: float) -> float | None:
        """Seconds of training after which the dev loss was at most `loss`."""
        return next((seconds for seconds, found in self.evaluations if found <= loss), None)


def averaged(before: Run, after: Run) -> Run:
    """One run out of two over the same rows: the mean of each step's seconds, the larger peak."""
    steps = [
        {**one, "seconds": (one["seconds"] + other["seconds"]) / 2}
        for one, other in zip(before.steps, after.steps, strict=True)
    ]
    peak = max(before.done["peak_mb"], after.done["peak_mb"])
    rate = max(before.done["products_per_second"], after.done["products_per_second"])
    rates = [before.rate, after.rate]
    done = {**before.done, "peak_mb": peak, "products_per_second": rate, "rates": rates}
    return Run(steps, done)


def linear_parameters(config: dict[str, Any]) -> int:
    """Weights of all linear layers of a Llama-like model, the output head left out."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"] * config["head_dim"]
    shared = config["num_key_value_heads"] * config["head_dim"]
    return config["num_hidden_layers"] * (2 * hidden * (heads + shared) + 3 * hidden * inner)


def product_flops(config: dict[str, Any], computed: int, labels: int) -> float:
    """Of a LoRA step's large products: forward and gradients of inputs, the head on labels only.

    The products of the adapters themselves and of attention are not in it.
    """
    head = config["vocab_size"] * config["hidden_size"]
    return 4.0 * linear_parameters(config) * computed + 4.0 * head * labels


class Bench:
    """The contenders on one workload after the other."""

    def __init__(self, options: argparse.Namespace, progress: Progress) -> None:
        self.progress, self.quick = progress, options.quick
        self.rows, self.model = open_rows(progress.say)
        self.config = json.loads((self.model / "config.json").read_text("utf-8"))
        self.peer: Path | None = None
        if options.only != "ours":
            self.peer = _common.peer_python("trl", options.peer_python, progress.say)
        self.found: dict[str, Any] = {}
        self.tables: list[str] = []

    def versions(self) -> dict[str, Any]:
        found: dict[str, Any] = dict(_common.versions(OWN_PACKAGES))
        if self.peer:
            found["trl's"] = _common.versions(PEER_PACKAGES, self.peer)
        return found

    def workload(self, name: str) -> None:
        """Measure all contenders, print what they did."""
        workload = WORKLOADS[name]
        steps = 2 if self.quick else workload.steps
        split = self.rows.split(name, steps)
        path = workspace() / "rows" / f"{name}.json"
        write(path, split)
        job = {
            "rows": str(path),
            "model": str(self.model),
            "batch_rows": workload.batch_rows,
            "learning_rate": LEARNING_RATE,
        }
        screened: dict[Variant, float | None] = {}
        measured: dict[Variant, Run] = {}
        if self.peer:
            job["pack_tokens"] = workload.pack_tokens
            screened = self._screened(name, workload, job)
        # Ours before and after the peers: a machine that others share is not always as fast.
        own_job = {**job, "evaluations": 1, "dev_rows": FEW_ROWS}
        before = self._ours(f"{name} ours", own_job)
        if self.peer:
            for variant in finalists(screened):
                measured[variant] = self._trl(f"{name} peer {len(measured) + 1}", job, variant)
            self.progress.skip(f"{name} peer")
            if not measured:
                raise ContenderFailed("TRL trained with none of its settings", where=name)
        ours = averaged(before, self._ours(f"{name} ours again", own_job))
        peers = {v.name(workload.batch_rows): run for v, run in measured.items()}
        _check_rows({OURS: ours, **peers}, split["train"])
        self._speed(name, workload, split["train"], ours, peers, screened)
        self._memory(name, ours, peers)
        best = max(measured, key=lambda v: measured[v].rate, default=None)
        self._to_loss(name, job, 2 if self.quick else LOSS_STEPS, best)

    def _ours(self, piece: str, job: dict[str, Any]) -> Run:
        return self._run(piece, Path(sys.executable), BENCHMARKS / "_train_ours.py", job)

    def _trl(self, piece: str, job: dict[str, Any], variant: Variant, **more: Any) -> Run:
        settings = {
            "number_format": variant.number_format,
            "arrangement": variant.arrangement,
            "size": variant.size,
            "screen_tokens": 0,
        }
        script = BENCHMARKS / "peers" / "trl_train.py"
        assert self.peer
        return self._run(piece, self.peer, script, job | settings | more)

    def _run(self, piece: str, python: Path, script: Path, job: dict[str, Any]) -> Run:
        run = Run()

        def on_event(event: Event) -> None:
            if "step" in event:
                run.steps.append(event)
                rate = event["tokens"] / event["seconds"]
                loss = event.get("dev_loss")
                after = "" if loss is None else f", dev loss {loss:.3f}"
                step = f"step {event['step']}/{event['steps']}"
                self.progress.say(f"{step}, {rate:.0f} tokens/s{after}")

        self.progress.begin(piece)
        try:
            if not job.get("screen_tokens"):
                _common.wake_memory()
            run.done = _common.run(python, script, job, self.progress, on_event)
            for step, loss in run.done.get("dev_losses", {}).items():
                run.steps[int(step) - 1]["dev_loss"] = loss
        finally:
            self.progress.end()
        return run

    def _screened(
        self, name: str, workload: Workload, job: dict[str, Any]
    ) -> dict[Variant, float | None]:
        """TRL's settings, each on a few micro-batches."""
        _common.wake_memory()
        tokens = 1_000 if self.quick else SCREEN_TOKENS
        tried = 0

        def attempt(variant: Variant, give_up_below: float) -> float | None:
            nonlocal tried
            tried += 1
            piece = f"{name} screening {tried}"
            self.progress.say(f"next is {variant.name(workload.batch_rows)}")
            try:
                run = self._trl(
                    piece, job, variant, screen_tokens=tokens, give_up_below=give_up_below
                )
            except ContenderFailed as failed:
                self.progress.say(str(failed))
                return None
            return run.rate

        rates = screen(
            attempt,
            NUMBER_FORMATS[:1] if self.quick else NUMBER_FORMATS,
            ARRANGEMENTS,
            workload.sizes[:1] if self.quick else workload.sizes,
        )
        self.progress.skip(f"{name} screening")
        return rates

    def _speed(
        self,
        name: str,
        workload: Workload,
        rows: Sequence[Row],
        ours: Run,
        peers: dict[str, Run],
        screened: dict[Variant, float | None],
    ) -> None:
        labels = sum(len(row.ids) - row.prompt_length for row in rows)
        computed = sum(step["computed"] for step in ours.steps)
        flops = product_flops(self.config, computed, labels)
        bound_seconds = flops / ours.done["products_per_second"]
        tries = {v.name(workload.batch_rows): rate for v, rate in screened.items()}
        self.found[name] = _common.workload(
            ours.rate,
            {peer: run.rate for peer, run in peers.items()},
            "tokens/s",
            number_format=ours.done["number_format"],
            steps=len(ours.steps),
            tokens=ours.tokens,
            tokens_computed=computed,
            label_tokens=labels,
            threads=ours.done["threads"],
            ours_before_and_after=ours.done["rates"],
            machine_gflops=ours.done["products_per_second"] / 1e9,
            share_of_machine=bound_seconds / ours.seconds,
            bound=ours.tokens / bound_seconds,
            screened=tries,
        )
        table = [_line(label, run, ours) for label, run in {OURS: ours, **peers}.items()]
        table += [
            [f"{label} (screened)", f"{rate:.0f}" if rate else "failed", "", "", ""]
            for label, rate in tries.items()
        ]
        title = (
            f"{name}: {workload.what}; {len(rows)} rows, {ours.tokens:,} tokens in "
            f"{len(ours.steps)} steps of {workload.batch_rows} rows"
        )
        header = ["contender", "tokens/s", "of ours", "seconds", "peak MB"]
        self.tables.append(_common.show(title, header, table))
        bound = (
            f"Ours computes {computed:,} of {ours.tokens:,} tokens. The model's products alone "
            f"would take {bound_seconds:.1f} of its {ours.seconds:.1f} seconds at the "
            f"{ours.done['products_per_second'] / 1e9:.0f} GFLOP/s that this machine reaches in "
            f"{ours.done['number_format']}: {bound_seconds / ours.seconds:.0%} of the bound of "
            f"{ours.tokens / bound_seconds:.0f} tokens/s."
        )
        print(bound + "\n")
        self.tables.append(bound + "\n")

    def _memory(self, name: str, ours: Run, peers: dict[str, Run]) -> None:
        self.found[f"{name}-memory"] = _common.workload(
            ours.done["peak_mb"],
            {peer: run.done["peak_mb"] for peer, run in peers.items()},
            "MB, peak of the process",
            lower_is_better=True,
        )

    def _to_loss(self, name: str, job: dict[str, Any], steps: int, best: Variant | None) -> None:
        """Seconds of training to the dev loss that ours has after half of its steps."""
        split = self.rows.split(name, steps)
        dev = split["dev"] if name == "short" else split["dev"][:FEWER_DEV_ROWS]
        path = workspace() / "rows" / f"{name}-to-loss.json"
        write(path, {**split, "dev": dev})
        job = {**job, "rows": str(path), "dev_rows": len(dev)}
        job["evaluations"] = max(1, steps // DEV_EVERY)
        ours = self._ours(f"{name} to a loss ours", job)
        half = ours.evaluations[: max(1, len(ours.evaluations) // 2)]
        target = half[-1][1]
        reached = {OURS: (ours.seconds_to(target), ours)}
        if best:
            peer = self._trl(
                f"{name} to a loss peer",
                job,
                best,
                target=target,
                dev_every=min(DEV_EVERY, steps),
                limit_seconds=LIMIT_SECONDS,
            )
            _check_start(ours, peer)
            reached[best.name(job["batch_rows"])] = (peer.seconds_to(target), peer)
        peers = {k: seconds for k, (seconds, _) in reached.items() if seconds and k != OURS}
        assert reached[OURS][0]
        self.found[f"{name}-to-loss"] = _common.workload(
            reached[OURS][0],
            peers,
            "seconds of training",
            lower_is_better=True,
            dev_loss=target,
            not_reached={k: run.seconds for k, (seconds, run) in reached.items() if not seconds},
        )
        lines = [
            [
                label,
                f"{seconds:.1f}" if seconds else f"not reached in {run.seconds:.0f} s",
                " ".join(f"{loss:.3f}" for _, loss in run.evaluations),
            ]
            for label, (seconds, run) in reached.items()
        ]
        title = f"{name}: seconds of training to a dev loss of {target:.3f}, evaluations left out"
        header = ["contender", "seconds", f"dev loss after every {DEV_EVERY} steps"]
        self.tables.append(_common.show(title, header, lines))


def _line(label: str, run: Run, ours: Run) -> list[str]:
    return [
        label,
        f"{run.rate:.0f}",
        f"{run.rate / ours.rate:.2f}",
        f"{run.seconds:.1f}",
        f"{run.done['peak_mb']:.0f}",
    ]


def _check_rows(runs: dict[str, Run], rows: Sequence[Row]) -> None:
    """Raise ContenderFailed where a contender did not go over these rows once, all of them."""
    wanted = sum(len(row.ids) for row in rows)
    for name, run in runs.items():
        if run.tokens != wanted:
            raise ContenderFailed(
                f"trained on {run.tokens:,} tokens where the rows have {wanted:,}", where=name
            )


def _check_start(ours: Run, peer: Run) -> None:
    """Raise ContenderFailed where the two did not begin with one model and one idea of loss."""
    starts = [run.done["dev_loss_before"] for run in (ours, peer)]
    if abs(starts[0] - starts[1]) > START_SLACK:
        raise ContenderFailed(f"dev losses before training are {starts[0]:.3f} and {starts[1]:.3f}")


def planned(names: Sequence[str], quick: bool, peers: bool) -> dict[str, float]:
    """Pieces of work and a first guess of their seconds."""
    row_tokens = {"short": 130, "prefix": 785, "long": 1290}
    pieces: dict[str, float] = {}
    for name in names:
        workload = WORKLOADS[name]
        steps = 2 if quick else workload.steps
        tokens = steps * workload.batch_rows * row_tokens[name]
        pieces[f"{name} ours"] = START_SECONDS + tokens / OUR_RATE
        pieces[f"{name} ours again"] = START_SECONDS + tokens / OUR_RATE
        to_loss = (2 if quick else LOSS_STEPS) * workload.batch_rows * row_tokens[name]
        pieces[f"{name} to a loss ours"] = 2 * START_SECONDS + to_loss / OUR_RATE
        if not peers:
            continue
        for trial in range(3 if quick else 10):
            screened = 1_000 if quick else SCREEN_TOKENS
            pieces[f"{name} screening {trial + 1}"] = START_SECONDS + screened / PEER_RATE
        for contender in range(1 if quick else 2):
            pieces[f"{name} peer {contender + 1}"] = START_SECONDS + tokens / PEER_RATE
        pieces[f"{name} to a loss peer"] = 2 * START_SECONDS + min(
            LIMIT_SECONDS, to_loss / PEER_RATE
        )
    return pieces


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", choices=WORKLOADS, help="only this one")
    parser.add_argument("--only", choices=["ours"], help="without TRL")
    parser.add_argument("--quick", action="store_true", help="2 steps, to see that it works")
    parser.add_argument("--peer-python", type=Path, help="python of an environment with TRL in it")
    return parser.parse_args(arguments)


def main() -> None:
    options = parsed()
    names = [options.workload] if options.workload else list(WORKLOADS)
    progress = Progress(planned(names, options.quick, options.only is None))
    with _common.ending():
        bench = Bench(options, progress)
        for name in names:
            bench.workload(name)
        if options.quick or options.only:
            progress.say("no full measurement: nothing is recorded")
        else:
            _common.record("train", bench.found, bench.tables, bench.versions())


if __name__ == "__main__":
    main()

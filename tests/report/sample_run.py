"""A run folder as a run leaves it, seeded, with the ugliest rows that users have.

`python -m tests.report.sample_run FOLDER` writes one to look at.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from tuneworthy.report.html import render
from tuneworthy.store import RunFolder, sha256_text, write_json, write_jsonl, write_text

Json = dict[str, Any]

SKILL = {
    "zero-shot": 0.06,
    "system-prompt": 0.31,
    "few-shot": 0.74,
    "rag": 0.52,
    "lora": 0.88,
    "full": 0.70,
}
TRAINED = ("lora", "full")
SECONDS = {
    "zero-shot": 0.31,
    "system-prompt": 0.38,
    "few-shot": 1.24,
    "rag": 0.92,
    "lora": 0.34,
    "full": 0.30,
}
HOSTILE = '</script><img src=x onerror="document.title=1"><!-- <b>bold</b> &amp; {{ 7*7 }}'
UGLY = [
    HOSTILE,
    "أطفئ الأنوار في غرفة المعيشة \u202e(txt.exe)",
    "turn on the 🛋️ lamp 👩‍👩‍👧‍👦 please",
    "first line\n\n\tsecond line\r\nthird \x0b line \x00 end",
    "set every lamp in the house, one after the other, " * 900,
    "unbroken" * 120,
    "\ud83d half an emoji",
    "把客厅的灯调到百分之五十",
]
INTENTS = ("HassTurnOn", "HassTurnOff", "HassLightSet", "HassClimateSetTemperature")
AREAS = ("kitchen", "bedroom", "living room", "garage", "attic", "bathroom")


def write_sample(
    path: Path,
    *,
    rows: int = 200,
    arms: tuple[str, ...] = tuple(SKILL),
    verdict: str = "adopt",
    finished: bool = True,
    intervals: bool = True,
    reopened: bool = True,
    ugly: bool = True,
) -> RunFolder:
    """Write a run folder; `finished` False stops it in the last arm, without a decision."""
    run = RunFolder(path)
    random = np.random.default_rng(7)
    test = _rows(rows, ugly)
    write_json(run.config, _config(rows, arms))
    write_json(run.checks, {"findings": _findings()})
    write_jsonl(run.rows, [{**test[0], "id": "r-train", "split": "train"}, *test])
    write_jsonl(run.ledger, _ledger(test))
    openings = [
        {
            "time": f"2026-11-20T10:{7 + i:02d}:11.120Z",
            "arm": arm,
            "reason": "final measurement",
            "run": path.name,
        }
        for i, arm in enumerate(arms)
    ]
    earlier = [
        {**opening, "time": "2026-11-19" + opening["time"][10:], "run": "earlier", "results": True}
        for opening in openings[:2]
    ]
    write_json(
        run.seal,
        {
            "sha256": sha256_text("test"),
            "rows": rows,
            "created": "2026-11-19T09:12:44.000Z",
            "openings": openings,
            "earlier": earlier if reopened else [],
        },
    )
    predictions: dict[str, list[Json]] = {}
    difficulty = random.random(rows)
    for arm in arms:
        lines = _predictions(arm, test, difficulty, random)
        if not finished and arm == arms[-1]:
            lines = lines[: rows // 3]
        predictions[arm] = lines
        # As `json.dumps` writes a lone surrogate: escaped, which UTF-8 can hold.
        write_text(run.predictions(arm), "".join(json.dumps(line) + "\n" for line in lines))
        write_json(run.fit(arm), _fit(arm))
        write_json(
            run.measured(arm),
            {
                "arm": arm,
                "seconds": 61.5,
                "memory_peak_bytes": 1_340_000_000,
                "complete": True,
                "figures": {"n": 200, "mean": 0.5, "parsed_share": 0.9, "exact_share": 0.25},
            },
        )
    if "lora" in arms:
        write_jsonl(run.curve("lora"), [_step(share) for share in (0.125, 0.25)])
    if finished:
        write_json(run.decision, _decision(predictions, verdict, intervals))
    return run


def _rows(number: int, ugly: bool) -> list[Json]:
    rows = []
    for i in range(number):
        area, intent = AREAS[i % len(AREAS)], INTENTS[i % len(INTENTS)]
        text = f"please do {intent.removeprefix('Hass')} in the {area}, request {i}"
        if ugly and i < len(UGLY):
            text = UGLY[i]
        rows.append(
            {
                "id": f"r{i:012x}",
                "split": "test",
                "messages": [{"role": "user", "content": text}],
                "completion": json.dumps({"intent": intent, "slots": {"area": area}}),
                "group": intent,
                "cluster": str(i // 3),
                "source": f"examples.jsonl:{7 * i + 3}",
            }
        )
    # Surrogates cannot be written as they are.
    for row in rows:
        for message in row["messages"]:
            message["content"] = message["content"].encode("utf-8", "replace").decode()
    return rows


def _predictions(
    arm: str, rows: list[Json], difficulty: Any, random: np.random.Generator
) -> list[Json]:
    lines = []
    for i, row in enumerate(rows):
        right = bool(difficulty[i] * 0.7 + random.random() * 0.3 < SKILL[arm])
        parsed = right or random.random() < 0.8
        score = 1.0 if right else (float(random.choice([0.0, 0.333333, 0.5])) if parsed else 0.0)
        text = row["completion"] if right else '{"intent": "HassTurnOn", "slots": {}}'
        if not parsed:
            text = f"Sure! I turned it on for you. {UGLY[i % len(UGLY)][:300]}"
        failed = i == 11
        lines.append(
            {
                "id": row["id"],
                "prompt_tokens": 730 if arm == "few-shot" else 61,
                "text": "" if failed else text,
                "output_tokens": 0 if failed else 24,
                "finish_reason": None if failed else ("length" if i == 5 else "stop"),
                "seconds": SECONDS[arm] * float(0.7 + 0.6 * random.random()),
                "score": None if failed else score,
                "chance": None if failed else 0.11,
                "parsed": False if failed else parsed,
                "failure": "out of memory at 12,004 tokens" if failed else None,
            }
        )
    return lines


def _config(rows: int, arms: tuple[str, ...]) -> Json:
    settings = {
        "task": ("home-commands", "given"),
        "instruction": (None, "default"),
        "base": ("smollm2-135m-instruct", "given"),
        "arms": (list(arms), "given"),
        "metric": ("json", "detected"),
        "margin": (0.02, "default"),
        "budget": (1800.0, "given"),
        "requests_per_month": (100_000, "default"),
        "prices.machine_hour_usd": (1.2, "default"),
        "few_shot.k": (10, "default"),
        "lora.learning_rate": (0.0005, "detected"),
        "seed": (0, "default"),
    }
    return {
        "version": 1,
        "task": "home-commands",
        "command": "tuneworthy decide home-commands/tuneworthy.yaml --budget 30m",
        "created": "2026-11-20T10:02:00.000Z",
        "tuneworthy": "0.1.0",
        "settings": {k: {"value": v, "origin": origin} for k, (v, origin) in settings.items()},
        "base": {
            "name": "smollm2-135m-instruct",
            "sha256": sha256_text("base"),
            "context_length": 8192,
            "parameters": 134_515_008,
            "licence": "Apache-2.0",
            "details": {"number format": "bfloat16", "threads": 2, "chat template": "in the file"},
        },
        "metric": {
            "name": "json",
            "why": "All 1,500 completions are JSON objects.",
            "graded": True,
        },
        "data": {"sha256": sha256_text("data"), "rows": {"train": 1000, "dev": 100, "test": rows}},
        "machine": {"processor": "2 cores, x86-64", "memory": "24 GB", "python": "3.11.2"},
        "packages": {"torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2"},
    }


def _findings() -> list[Json]:
    return [
        {
            "check": "duplicates",
            "severity": "info",
            "summary": "14 rows are exact copies of earlier rows and were dropped.",
            "sources": [f"examples.jsonl:{i}" for i in range(40, 54)],
            "count": 14,
        },
        {
            "check": "contradictions",
            "severity": "warning",
            "summary": "3 prompts have more than one completion; no arm can answer both.",
            "sources": ["examples.jsonl:88", "examples.jsonl:1204"],
            "count": 3,
        },
    ]


def _ledger(test: list[Json]) -> list[Json]:
    def line(i: int, split: str | None, dropped: str | None, reason: str | None) -> Json:
        return {
            "id": f"l{i}",
            "source": f"examples.jsonl:{i + 1}",
            "sha256": sha256_text(str(i)),
            "split": split,
            "dropped": dropped,
            "reason": reason,
            "tokens": 61,
            "truncated": 0,
        }

    kept = ["test"] * len(test) + ["dev"] * 100 + ["train"] * 1000
    lines = [line(i, split, None, None) for i, split in enumerate(kept)]
    start = len(lines)
    lines += [
        line(start + i, None, "duplicate", "exact duplicate of examples.jsonl:7") for i in range(14)
    ]
    lines.append(line(start + 14, None, "too-long", "too long: 9,120 tokens, context 8,192"))
    return lines


def _fit(arm: str) -> Json:
    names = {
        "system-prompt": ["none", "Answer with one JSON object.", "You turn requests into JSON."],
        "few-shot": ["10 fixed", "10 random", "10 similar"],
        "rag": ["3 passages", "5 passages"],
        "lora": ["learning rate 0.0002", "learning rate 0.0005", "learning rate 0.001"],
        "full": ["learning rate 2e-05", "learning rate 5e-05"],
    }.get(arm, [])
    candidates = [
        {
            "what": name,
            "dev_score": None if arm in TRAINED else round(SKILL[arm] - 0.04 * i, 3),
            "dev_loss": round(0.21 + 0.03 * i, 4) if arm in TRAINED else None,
            "n": 100,
            "seconds": 38.2 + i,
        }
        for i, name in enumerate(names)
    ]
    training = None
    if arm in TRAINED:
        history = [
            {
                "step": step,
                "epoch": step / 125,
                "loss": 0.25 + 1.9 * float(np.exp(-step / 60)) + 0.04 * float(np.sin(step)),
                "learning_rate": 5e-4,
                **({"dev_loss": 0.3 + 1.7 * float(np.exp(-step / 50))} if step % 50 == 0 else {}),
            }
            for step in range(10, 251, 10)
        ]
        training = {
            "settings": {"method": arm, "learning_rate": 5e-4},
            "steps": 250,
            "best_step": 250,
            "dev_loss_before": 1.912,
            "dev_loss": 0.311,
            "train_loss": 0.262,
            "seconds": 268.4,
            "tokens": 182_000,
            "label_tokens": 41_000,
            "trained_parameters": 4_884_480,
            "rows": 1000,
            "rows_without_labels": 0,
            "stopped": "finished",
            "history": history,
        }
    return {
        "arm": arm,
        "chosen": {"what": names[0], "system": UGLY[0]} if names else {},
        "candidates": candidates,
        "why": f"{names[0]} did best on 100 dev rows." if names else "Nothing to choose.",
        "seconds": 312.0 if arm in TRAINED else 41.0,
        "training": training,
    }


def _decision(
    predictions: dict[str, list[Json]],
    verdict: str,
    intervals: bool,
) -> Json:
    scores = {
        arm: np.array([line["score"] for line in lines if line["score"] is not None])
        for arm, lines in predictions.items()
    }

    def bounds(values: Any) -> list[float] | None:
        error = 1.96 * float(values.std(ddof=1)) / len(values) ** 0.5
        return [float(values.mean()) - error, float(values.mean()) + error] if intervals else None

    def p_value(values: Any) -> float | None:
        z = float(values.mean()) / (float(values.std(ddof=1)) / len(values) ** 0.5)
        return 2 * NormalDist().cdf(-abs(z)) if intervals else None

    untrained = [arm for arm in predictions if arm not in TRAINED]
    best_untrained = max(untrained, key=lambda arm: scores[arm].mean())
    trained = [arm for arm in predictions if arm in TRAINED]
    arms = []
    for arm, lines in predictions.items():
        differences = scores[arm] - scores[best_untrained]
        waits = sorted(line["seconds"] for line in lines)
        delta: Json | None = None
        if arm != best_untrained:
            p = p_value(differences)
            delta = {
                "value": float(differences.mean()),
                "interval": bounds(differences),
                "p": p,
                "p_holm": None if p is None else min(1.0, 5 * p),
            }
        arms.append(
            {
                "arm": arm,
                "trained": arm in TRAINED,
                "score": float(scores[arm].mean()),
                "interval": bounds(scores[arm]),
                "n": len(scores[arm]),
                "failures": len(lines) - len(scores[arm]),
                "unparsed": sum(1 for p in lines if p["failure"] is None and not p["parsed"]),
                "chance": 0.11,
                "answers_the_prompt": {
                    "value": float(scores[arm].mean()) - 0.11,
                    "interval": bounds(scores[arm] - 0.11),
                    "p": 0.0002 if intervals else None,
                },
                "delta_vs_best_untrained": delta,
                "cost": {
                    "fit_seconds": 312.0 if arm in TRAINED else 41.0 if arm != "zero-shot" else 0.0,
                    "fit_usd": 0.104 if arm in TRAINED else 0.0137,
                    "usd_per_1k_requests": SECONDS[arm] / 3.6 * 1.2 * 0.1,
                    "seconds_p50": waits[len(waits) // 2],
                    "seconds_p95": waits[len(waits) * 95 // 100],
                    "prompt_tokens_mean": 730.4 if arm == "few-shot" else 61.2,
                },
                "memory_peak_bytes": 1_340_000_000 if arm != "rag" else None,
                "seeds": {"scores": [0.88, 0.86, 0.87], "mean": 0.87, "sd": 0.01}
                if arm == "lora"
                else None,
                "forgotten": _forgotten() if arm in TRAINED else None,
                "spread": {"of": "order of the same examples", "n": 3, "sd": 0.02, "scores": []}
                if arm == "few-shot"
                else None,
                "fit": None,
            }
        )
    adopted = best_untrained
    if verdict == "adopt" and "lora" in predictions:
        adopted = "lora"
    return {
        "version": 1,
        "task": "home-commands",
        "base": {"name": "smollm2-135m-instruct", "sha256": sha256_text("base")},
        "verdict": verdict,
        "arm": adopted,
        "fine_tune": verdict == "adopt" and adopted in trained,
        "because": [
            f"{adopted} scores {scores[adopted].mean():.3f} on {len(scores[adopted])} sealed test "
            "rows.",
            "The best arm without training, few-shot, pays for its ten examples on every request: "
            "$0.041 per 1,000 requests against $0.011.",
            "Training has paid for itself after about 3,000 requests (estimate), at 100,000 a "
            "month.",
        ],
        "also": [f"0.058 is what this test can tell apart, whatever {HOSTILE} says."],
        "would_change": "An arm without training within 0.02." if verdict == "adopt" else None,
        "arms": arms,
        "metric": "json",
        "margin": 0.02,
        "requests_per_month": 100_000,
        "best_untrained": best_untrained,
        "rows_needed": 640 if verdict != "adopt" else None,
        "out_of_time": [],
        "not_measured": [
            {"arm": "linear", "reason": "completions are not labels: 1,214 distinct in 1,500 rows"}
        ],
        "smallest_detectable_difference": 0.058 if intervals else None,
        "break_even_requests": 3021 if trained else None,
        "stopped": [],
        "flips": [],
        "no_more_seeds": [],
        "diagnosis": {
            "needs": "form",
            "rows": 40,
            "knowledge_share": 0.12,
            "evidence": ["12 % of the rows ask for facts.", f"A line with {HOSTILE}"],
        },
        "forecast": _forecasts(),
        "debt": {
            "arm": adopted,
            **_debt(3, 2, 6, None),
            "alternatives": {"zero-shot": _debt(3, 1, 1, 5), "full": _debt(3, 4, 7, 2)},
        },
        "rules": [
            {"rule": "too few rows", "fires": False, "said": "1,000 training rows.", "source": "x"},
            {"rule": "training for facts", "fires": True, "said": "61 % ask.", "source": "y"},
            {"rule": "a one-off task", "fires": None, "said": "Not measured.", "source": "z"},
        ],
        "spent": {
            "seconds": 812.0,
            "usd": 0.27,
            "exhaustive_seconds_estimate": 2900.0,
            "by": [
                {"arm": "lora", "what": "training", "seconds": 312.0},
                {"arm": None, "what": "diagnosis", "seconds": 44.0},
            ],
        },
        "seal": {"sha256": sha256_text("test")},
    }


def _debt(*scores: int | None) -> Json:
    names = ("detectability", "effort", "burden", "trap")
    why = {name: f"{name}, in 1 sentence with 2 numbers." for name in names}
    return {**dict(zip(names, scores)), "why": why}


def _forgotten() -> Json:
    return {
        "questions": 108,
        "base": 0.62,
        "trained": 0.58,
        "difference": -0.04,
        "interval": [-0.12, 0.04],
        "p": 0.3,
    }


def _forecasts() -> list[Json]:
    whole = {"arm": "lora", "rows": 1000, "realised": 0.81}
    return [
        {**whole, "at": 0.25, "of": "score", "predicted": 0.79, "interval": [0.70, 0.86]},
        {**whole, "at": 0.25, "of": "loss", "predicted": None, "interval": None, "realised": None},
        {
            **{**whole, "rows": 4000, "realised": None},
            **{"at": 1.0, "of": "score", "predicted": 0.967, "interval": [0.94, 0.985]},
        },
    ]


def _step(share: float) -> Json:
    """A training on a part of the rows: right answers to 100 dev rows, one of which has no score."""
    right = round(100 * (0.5 + share))
    return {
        "share": share,
        "rows": round(1000 * share),
        "dev_scores": [None, *([1.0] * right), *([0.0] * (99 - right))],
        "dev_loss": 0.9 - share,
        "stopped": "finished",
        "seconds": 40.0,
    }


if __name__ == "__main__":
    made = write_sample(Path(sys.argv[1]), verdict=(sys.argv[2:] or ["adopt"])[0])
    write_text(made.report, render(made))
    print(made.report)

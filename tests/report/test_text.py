import io

import pytest
from rich.console import Console

from tuneworthy.report.text import arms_table, partial_table, verdict_text

COST = {
    "fit_seconds": 312.4,
    "fit_usd": 0.104,
    "usd_per_1k_requests": 0.0113,
    "seconds_p50": 0.34,
    "seconds_p95": 0.43,
    "prompt_tokens_mean": 61.2,
}


def arm(name, score, delta=None, *, trained=False, interval=True, **cost):
    return {
        "arm": name,
        "trained": trained,
        "score": score,
        "interval": [score - 0.04, score + 0.04] if interval and score is not None else None,
        "n": 199,
        "failures": 1,
        "unparsed": 3,
        "delta_vs_best_untrained": delta,
        "cost": COST | cost,
    }


def decision(**changes):
    delta = {"value": 0.059, "interval": [0.026, 0.093], "p": 0.0004, "p_holm": 0.002}
    worse = {"value": -0.473, "interval": [-0.53, -0.41], "p": 1e-9, "p_holm": 5e-9}
    return {
        "verdict": "adopt",
        "arm": "lora",
        "fine_tune": True,
        "because": [
            "lora scores 0.954 on 199 sealed test rows, and few-shot, which needs none, "
            "scores 0.895."
        ],
        "also": ["3 trainings of lora that differ in their seed alone score 0.954, 0.950, 0.948."],
        "would_change": "An arm without training within 0.02.",
        "arms": [
            arm("system-prompt", 0.421, worse, fit_seconds=0.0, usd_per_1k_requests=0.000123),
            arm("few-shot", 0.895, usd_per_1k_requests=4.1, fit_seconds=7500.0),
            arm("lora", 0.954, delta, trained=True),
        ],
        "best_untrained": "few-shot",
        "margin": 0.02,
        "not_measured": [{"arm": "rag", "reason": "no documents"}],
        "smallest_detectable_difference": 0.058,
        "rows_needed": None,
        "out_of_time": [],
        "flips": [],
        "stopped": [],
    } | changes


def printed(renderable, width=80):
    out = io.StringIO()
    Console(file=out, width=width, no_color=True).print(renderable, crop=False)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def test_arms_table_at_80_columns():
    assert (
        printed(arms_table(decision()))
        == """\
                                              vs best
arm              score  95 % interval    n  untrained  Holm p      $/1k    fit
──────────────────────────────────────────────────────────────────────────────
* lora           0.954    0.914–0.994  199     +0.059   0.002    $0.011  5m12s
  few-shot       0.895    0.855–0.935  199   baseline       -     $4.10  2h05m
  system-prompt  0.421    0.381–0.461  199     −0.473  <0.001  $0.00012     0s
* adopted   $/1k: per 1,000 requests"""
    )


@pytest.mark.parametrize("width", [80, 100])
def test_tables_fit(width):
    missing = {"value": None, "interval": None, "p": None, "p_holm": None}
    empty = arm("zero-shot", None, missing, usd_per_1k_requests=None, fit_seconds=None)
    table = decision(arms=[*decision()["arms"], empty])
    lines = printed(arms_table(table), width).splitlines()
    assert max(map(len, lines)) <= width
    assert lines[-1].endswith("n/m: not measurable")
    assert sum(line.count("n/m") for line in lines) == 6 + 1
    assert "…" not in "".join(lines)


def test_verdict():
    assert (
        printed(verdict_text(decision(), "runs/x/report.html"))
        == """\
VERDICT  ADOPT lora — fine-tuning is worth it

  - lora scores 0.954 on 199 sealed test rows, and few-shot, which needs none,
    scores 0.895.
  - Confidence: high. If training made no difference, a gap this large would
    show up in about 2 tests in 1,000.
  - What would change this: An arm without training within 0.02.
  - Not measured: rag, no documents
  - 1 other finding in the report

Report  runs/x/report.html
Next    tuneworthy serve answers with it; the trained weights are in
        arms/lora/model/ of the run folder."""
    )


def test_a_long_path_stays_on_one_line():
    path = "/home/somebody/" + "project/" * 12 + "report.html"
    assert f"Report  {path}" in printed(verdict_text(decision(), path)).splitlines()


@pytest.mark.parametrize(
    ("changes", "line", "next_step"),
    [
        (
            {"arm": "few-shot", "fine_tune": False},
            "ADOPT few-shot — do not fine-tune",
            "arms/few-shot/fit.json",
        ),
        (
            {"verdict": "inconclusive", "arm": "few-shot", "fine_tune": False, "rows_needed": 640},
            "INCONCLUSIVE — this test cannot tell",
            "data.test: 640",
        ),
        (
            {"verdict": "collect-data", "arm": None, "fine_tune": False, "rows_needed": 2400},
            "COLLECT DATA — more or better rows are needed",
            "2,400 rows (estimate)",
        ),
        (
            {"verdict": "collect-data", "arm": "rag", "fine_tune": False},
            "COLLECT DATA — more or better rows are needed; use rag meanwhile",
            "tuneworthy decide",
        ),
    ],
)
def test_every_verdict_says_what_to_do(changes, line, next_step):
    text = " ".join(printed(verdict_text(decision(**changes), "r.html")).split())
    assert line in text
    assert next_step in text


def test_markup_in_words_is_shown_as_it_is():
    text = printed(verdict_text(decision(because=["[bold]x[/bold] [/]"]), "[r].html"))
    assert "[bold]x[/bold] [/]" in text
    assert "Report  [r].html" in text


def test_partial_table():
    arms = [
        {
            "arm": "few-shot",
            "state": "answering",
            "done": 90,
            "total": 200,
            "score": 0.7,
            "interval": [0.6, 0.8],
            "seconds_left": 12.0,
        },
        {
            "arm": "lora",
            "state": "waiting [next]",
            "done": 0,
            "total": None,
            "score": None,
            "interval": None,
            "seconds_left": None,
        },
    ]
    assert (
        printed(partial_table(arms))
        == """\
arm       state             rows  score  95 % interval   time left
──────────────────────────────────────────────────────────────────
few-shot  answering       90/200  0.700    0.600–0.800  about 12 s
lora      waiting [next]       0      -              -           -
scores so far; time left is an estimate"""
    )

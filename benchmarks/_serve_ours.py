"""What `serve.py` has done in processes of their own: a project measured, and answers in one batch."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from _generate_ours import Teller, tell

import tuneworthy
from tuneworthy.store import RunFolder
from tuneworthy.types import Answer, Message
from tuneworthy.workflows.serving import Serving, open_base

TRAINED = "lora"


def say(text: str) -> None:
    print(text, file=sys.stderr)


def prepare(job: dict[str, Any]) -> dict[str, Any]:
    """Measure the arms, as anybody would; what is there already is not done again."""
    decision = tuneworthy.decide(job["project"])
    tuneworthy.evaluate(job["project"], TRAINED)
    return {"run": str(decision.folder)}


def batch(job: dict[str, Any]) -> dict[str, Any]:
    """All rows at once through the arm that the server serves, with nothing around it."""
    run = RunFolder(Path(job["run"]))
    engine = open_base(run, say)
    arm = Serving(run, engine, say).arm(job["arm"])
    prompts = [
        tuple(Message(turn["role"], turn["content"]) for turn in row) for row in job["prompts"]
    ]
    warm, measured = prompts[: job["warm"]], prompts[job["warm"] :]
    arm.answer(warm)
    start = time.perf_counter()
    found = arm.answer(measured, Teller(len(measured)))
    seconds = time.perf_counter() - start
    answers = [[a.text, a.output_tokens] for a in found if isinstance(a, Answer)]
    if len(answers) < len(found):
        raise RuntimeError(f"{len(found) - len(answers)} rows were not answered")
    return {"seconds": seconds, "answers": answers}


def main(path: str) -> None:
    job = json.loads(Path(path).read_text("utf-8"))
    tell({"done": {"prepare": prepare, "batch": batch}[job["what"]](job)})


if __name__ == "__main__":
    main(sys.argv[1])

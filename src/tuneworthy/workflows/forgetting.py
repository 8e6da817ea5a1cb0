"""What a trained arm lost on the general probe, against its base."""

from __future__ import annotations

import time
from typing import Any

from tuneworthy import store
from tuneworthy.arms import ARMS
from tuneworthy.arms.recipe import FittedRecipe
from tuneworthy.errors import ModelError
from tuneworthy.evaluation.probe import questions
from tuneworthy.evaluation.statistics import compare
from tuneworthy.store import RunFolder
from tuneworthy.types import Failure, Message, Weights
from tuneworthy.workflows.session import Session


def probe_file(folder: RunFolder, arm: str) -> Any:
    return folder.arm(arm) / "probe.json"


def probe(session: Session, name: str) -> None:
    """Put the probe to a trained arm's weights, and to the base where that is not done yet.

    Likelihoods of the choices, nothing generated: an arm that has learned to answer everything
    with JSON still shows what it knows. Nothing happens on a base that does not tell likelihoods.
    """
    path = probe_file(session.folder, name)
    record = session.fit_record(name)
    if path.exists() or record is None:
        return
    try:
        if not session.folder.probe.exists():
            store.write_json(session.folder.probe, _asked(session, name, "of the base", None))
        task = session.task(name)
        fitted = ARMS[name].restore(task, record)
        assert isinstance(fitted, FittedRecipe)
        store.write_json(path, _asked(session, name, "", fitted.recipe.weights))
    except ModelError:  # an endpoint does not tell
        return


def _asked(session: Session, arm: str, whose: str, weights: Weights | None) -> dict[str, Any]:
    """1 for each question whose right choice is the likeliest a token, None where it failed."""
    began, asked = time.monotonic(), questions()
    fields = {"arm": arm, "phase": f"general probe {whose}".strip(), "total": len(asked)}
    session.journal("tick", {**fields, "done": 0})
    prompts = [(Message("user", question.prompt),) for question in asked]
    scored = session.engine.score(prompts, [q.choices for q in asked], weights=weights)
    right: list[int | None] = []
    for found in scored:
        if isinstance(found, Failure):
            right.append(None)
            continue
        # By the token: choices are of different lengths.
        each = [choice.log_probability / max(1, choice.tokens) for choice in found]
        right.append(int(max(range(len(each)), key=each.__getitem__) == 0))
    return {"right": right, "seconds": time.monotonic() - began}


def forgotten(folder: RunFolder, name: str, seed: int) -> dict[str, Any] | None:
    """Shares of right choices of base and arm, and the paired difference; None if not probed."""
    path = probe_file(folder, name)
    if not path.exists() or not folder.probe.exists():
        return None
    base, mine = (store.read_json(p)["right"] for p in (folder.probe, path))
    pairs = [(b, m) for b, m in zip(base, mine) if b is not None and m is not None]
    if not pairs:
        return None
    before, after = [b for b, _ in pairs], [m for _, m in pairs]
    difference = compare(after, before, range(len(pairs)), seed=seed)
    assert difference
    return {
        "questions": len(pairs),
        "base": sum(before) / len(pairs),
        "trained": sum(after) / len(pairs),
        "difference": difference.value,
        "interval": [difference.low, difference.high],
        "p": difference.p,
    }

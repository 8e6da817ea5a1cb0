"""Controls that keep the verdict honest, by simulation with fixed seeds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tuneworthy.decision.evidence import ArmEvidence
from tuneworthy.evaluation import statistics

from .evidence import arm, judged

TRIALS = 200
RESAMPLES = 3000
"""Fewer than in earnest, for speed; enough for p < 0.001."""

Prior = Callable[[np.random.Generator], np.ndarray]

PRIORS: dict[str, Prior] = {
    "two even labels": lambda random: np.array([0.5, 0.5]),
    "ten uneven labels": lambda random: random.dirichlet(np.ones(10)),
    "one label on 9 of 10 rows": lambda random: np.array([0.9, 0.05, 0.05]),
    "one label on 97 of 100 rows": lambda random: np.array([0.97, 0.03]),
    "a hundred rare answers": lambda random: random.dirichlet(np.full(100, 0.3)),
}


def answers(
    name: str, said: np.ndarray, wanted: np.ndarray, clusters: np.ndarray, fields: int = 1
) -> ArmEvidence:
    """An arm whose answers are label numbers, shape (rows, fields); its chance score is exact."""
    agreement = (said[:, None, :] == wanted[None, :, :]).mean(axis=2)
    score = np.diagonal(agreement)
    n = len(said)
    return arm(
        name,
        score.tolist(),
        chance=tuple(((agreement.sum(axis=1) - score) / (n - 1)).tolist()),
        clusters=tuple(clusters.tolist()),
        graded=fields > 1,
    )


def shuffled_task(seed: int, prior: Prior, fields: int, n: int) -> list[ArmEvidence]:
    """Completions lie on the wrong prompts; training taught their form and frequencies.

    Untrained arms mostly miss the form. `lora` draws answers by their frequency, `full` says
    the commonest: both far ahead of zero-shot.
    """
    random = np.random.default_rng(seed)
    shares = prior(random)
    clusters = np.sort(random.integers(0, max(2, int(n * 0.7)), n))
    wanted = random.choice(len(shares), p=shares, size=(n, fields))
    sampled = random.choice(len(shares), p=shares, size=(n, fields))
    commonest = np.full((n, fields), np.argmax(shares))
    untrained = np.where(random.random((n, 1)) < 0.05, sampled[::-1], -1)
    return [
        answers("zero-shot", untrained, wanted, clusters, fields),
        answers("lora", sampled, wanted, clusters, fields),
        answers("full", commonest, wanted, clusters, fields),
    ]


@pytest.mark.parametrize("fields", [1, 4])
@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
def test_answers_shuffled_onto_other_prompts_never_lead_to_training(
    prior: Prior, fields: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", RESAMPLES)
    verdicts = []
    for trial in range(TRIALS // len(PRIORS)):
        n = (60, 120, 250)[trial % 3]
        decision = judged(*shuffled_task(trial, prior, fields, n))
        assert decision.fine_tune is False, (trial, decision.because)
        verdicts.append(decision.verdict)
    assert len(verdicts) == 40
    # The control is only worth something where training does look better.
    if prior is not PRIORS["a hundred rare answers"]:
        assert verdicts.count("collect-data") >= 25


@pytest.mark.parametrize(("n", "skill"), [(60, 0.9), (120, 0.6), (250, 0.5)])
def test_the_same_task_with_its_own_answers_does(
    n: int, skill: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guard lets honest training pass: part of the answers is right, the rest drawn."""
    monkeypatch.setattr(statistics, "RESAMPLES", RESAMPLES)
    adopted = 0
    for trial in range(20):
        random = np.random.default_rng(trial)
        clusters = np.arange(n)
        wanted = random.choice(4, size=(n, 1))
        drawn = random.choice(4, size=(n, 1))
        knows = random.random((n, 1)) < skill
        lora = answers("lora", np.where(knows, wanted, drawn), wanted, clusters)
        zero = answers("zero-shot", np.where(drawn == 0, drawn, -1), wanted, clusters)
        decision = judged(zero, lora)
        adopted += decision.fine_tune
    assert adopted >= 18


@pytest.mark.parametrize("kind", ["right or wrong", "graded and clustered"])
def test_the_same_arm_entered_twice_is_not_distinguishable(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs of one noisy arm, one of them called trained."""
    monkeypatch.setattr(statistics, "RESAMPLES", RESAMPLES)
    different = 0
    trained = 0
    for trial in range(TRIALS):
        random = np.random.default_rng(trial)
        n = 120
        if kind == "right or wrong":
            clusters = np.arange(n)
            scores = (random.random((2, n)) < random.beta(2, 2, n)).astype(float)
        else:
            clusters = np.sort(random.integers(0, 50, n))
            shared = random.normal(0, 0.1, (2, 50))[:, clusters]
            scores = np.clip(random.beta(4, 2, (2, n)) + shared, 0, 1)
        first = arm("zero-shot", scores[0].tolist(), clusters=tuple(clusters.tolist()))
        second = arm("lora", scores[1].tolist(), clusters=tuple(clusters.tolist()))
        decision = judged(first, second)
        delta = next(result.delta for result in decision.arms if result.delta)
        different += delta.p < 0.05
        trained += decision.fine_tune
    assert different <= 0.05 * TRIALS
    # Only a significant difference in one of two directions is a gain.
    assert trained <= different

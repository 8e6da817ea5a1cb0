"""System prompts rewritten by a model that sees what went wrong: GEPA, by its own library.

Source: Agrawal et al. (2025), "GEPA: Reflective Prompt Evolution Can Outperform Reinforcement
Learning". Training rows give the mistakes, dev rows the choice; no test row is seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tuneworthy.arms.base import Task
from tuneworthy.arms.recipe import FittedRecipe, Recipe
from tuneworthy.errors import ModelError
from tuneworthy.types import Answer, Decoding, Engine, Example, Failure, Message

NAME = "system_prompt"
REFLECTION_TOKENS = 1024
MINIBATCH = 4


class _Adapter:
    """What GEPA needs to know of a task: how to answer, and what to say of an answer."""

    propose_new_texts = None

    def __init__(self, task: Task) -> None:
        self.task = task

    def evaluate(
        self, batch: list[Example], candidate: dict[str, str], capture_traces: bool = False
    ) -> Any:
        from gepa.core.adapter import EvaluationBatch

        kitchen = self.task.kitchen
        fitted = FittedRecipe(Recipe(system=candidate[NAME]), kitchen)
        answers = fitted.answer([example.prompt for example in batch])
        scores = [self._score(example, answer) for example, answer in zip(batch, answers)]
        self.task.report(
            "tick",
            {
                "arm": "system-prompt",
                "phase": "rewriting by reflection",
                "done": 0,
                "total": self.task.project.system_prompt.calls,
            },
        )
        traces = list(zip(batch, answers, scores)) if capture_traces else None
        return EvaluationBatch(outputs=answers, scores=scores, trajectories=traces)

    def _score(self, example: Example, answer: Answer | Failure) -> float:
        if isinstance(answer, Failure):
            # GEPA knows no missing score; on the choice that follows, failures count as failures.
            return 0.0
        return self.task.metric.score(answer.text, example.completion).value

    def make_reflective_dataset(
        self, candidate: dict[str, str], eval_batch: Any, components_to_update: list[str]
    ) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        records = [
            {
                "Inputs": example.text,
                "Generated Outputs": answer.text if isinstance(answer, Answer) else "none",
                "Feedback": f"Score {score:.2f} of 1. The wanted answer is: {example.completion}",
            }
            for example, answer, score in eval_batch.trajectories or ()
        ]
        return dict.fromkeys(components_to_update, records)


def reflecting(engine: Engine) -> Any:
    """The model as GEPA calls it: text in, text out. Raises ModelError if it does not answer."""
    decoding = Decoding(max_tokens=REFLECTION_TOKENS)

    def ask(prompt: Any) -> str:
        text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        [answer] = engine.generate([(Message("user", text),)], decoding)
        if isinstance(answer, Failure):
            raise ModelError(
                f"the model to reflect with did not answer: {answer.reason}",
                where="system_prompt.reflect",
                hint="name another model, or take the setting out",
            )
        return answer.text

    return ask


def optimised(task: Task, first: str) -> str:
    """The system prompt that GEPA ends with, from `first`; within the project's calls."""
    import gepa

    assert task.kitchen.reflector
    result = gepa.optimize(
        seed_candidate={NAME: first},
        trainset=list(task.train),
        valset=list(task.dev),
        adapter=_Adapter(task),
        reflection_lm=reflecting(task.kitchen.reflector()),
        reflection_minibatch_size=MINIBATCH,
        max_metric_calls=task.project.system_prompt.calls,
        stop_callbacks=[lambda state: task.late],
        seed=task.project.seed,
        logger=_Quiet(),
    )
    return str(result.best_candidate[NAME])


class _Quiet:
    def log(self, message: str) -> None:
        """Our own lines say what is going on."""

"""The records that travel through the house, and the protocols of its three kinds of part.

Everything here is frozen and holds plain Python values; no module below this one is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np

Role = Literal["system", "user", "assistant"]
SplitName = Literal["train", "dev", "test"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


Prompt = tuple[Message, ...]
"""Everything before the answer, oldest turn first."""


@dataclass(frozen=True, slots=True)
class Example:
    """One row of the task: a prompt and the completion that was wanted."""

    id: str
    prompt: Prompt
    completion: str
    source: str
    """`file:line`, counted from 1."""
    group: str | None = None
    """Value of `data.group_by`, if the project names one."""
    cluster: str = ""
    """Rows with one value are resampled together and never straddle a split."""

    @property
    def text(self) -> str:
        """The prompt as plain text, turns joined by newlines: for search, never for a model."""
        return "\n".join(message.content for message in self.prompt)


GrammarKind = Literal["labels", "regex", "json_schema"]


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an answer must be: decoding that is held to it allows nothing else."""

    kind: GrammarKind
    source: str
    """The labels as a JSON list, the pattern, or the schema as JSON."""
    separators: tuple[str, str] | None = None
    """What JSON has between items and after a key, exactly; None: any, with a little white space."""
    likeliest: bool = False
    """Labels only: the label that is likeliest as a whole, instead of decoding token by token."""


@dataclass(frozen=True, slots=True)
class Decoding:
    """How answers are decoded: the same for every arm of a run."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0
    grammar: Grammar | None = None
    """Set for the arms that are held to one."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said. `seconds` is the time this row waited for it, batch included."""

    text: str
    prompt_tokens: int
    output_tokens: int
    finish_reason: Literal["stop", "length"]
    seconds: float


@dataclass(frozen=True, slots=True)
class Failure:
    """The machinery failed on this row. Never a score; shown and counted apart."""

    reason: str


@dataclass(frozen=True, slots=True)
class Likelihood:
    """How likely a model finds one continuation of a prompt, its end included."""

    log_probability: float
    """Natural logarithm; summed over the tokens."""
    tokens: int


@dataclass(frozen=True, slots=True)
class Score:
    """A metric's judgement of one answer: `value` in [0, 1]; `parsed` False is a miss of form."""

    value: float
    parsed: bool = True


@dataclass(frozen=True, slots=True)
class Prediction:
    """One line of `predictions.jsonl`.

    `chance` is the mean score of the same answer against the references of other rows: what the
    answer would earn if it had nothing to do with its prompt. `score` and `chance` are None
    where `failure` is not.
    """

    id: str
    prompt_tokens: int
    text: str
    output_tokens: int
    finish_reason: str | None
    seconds: float
    score: float | None
    chance: float | None
    parsed: bool
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a document; `start` and `end` are character offsets in its text."""

    id: str
    document: str
    text: str
    start: int = 0
    end: int = 0


@dataclass(frozen=True, slots=True)
class Base:
    """A base model, resolved. `sha256` is of the weights file, or of the endpoint's address."""

    name: str
    sha256: str
    context_length: int
    parameters: int | None
    trainable: bool
    licence: str | None = None
    details: dict[str, Any] = field(default_factory=dict)
    """What was detected and chosen, for the report: number format, template, threads."""


@dataclass(frozen=True, slots=True)
class Weights:
    """What training left behind: a folder in `arms/<arm>/model/`."""

    kind: Literal["adapter", "full"]
    folder: Path


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """Every number of a training run, resolved. Lengths in tokens, `warmup` a share of steps."""

    method: str
    learning_rate: float
    epochs: float
    batch_rows: int = 8
    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    warmup: float = 0.1
    weight_decay: float = 0.0
    max_gradient_norm: float = 1.0
    evaluations_per_epoch: int | None = None
    """None: two, or one where judging would take long beside learning; see `evaluations`."""
    watch_overfitting: bool = True
    """Whether dev is also judged before the first step, and training rows with what is kept."""
    patience: int = 2
    """Evaluations without a gain on dev, of two an epoch, that end training."""
    seed: int = 0
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"
    """How several processes share the work: each with all weights, or with a part of them."""

    def evaluations(self, rows: int, judged: int) -> int:
        """How many an epoch of so many rows has, where each judges so many.

        To judge a row takes a third to half as long as to learn from it: a quarter as many rows as
        are learned from in half an epoch is about a tenth of the time.
        """
        if self.evaluations_per_epoch is not None:
            return self.evaluations_per_epoch
        return 2 if judged <= rows / 2 / 4 else 1


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What a training run did. Losses are mean negative log-likelihood per label token (nats)."""

    settings: TrainingSettings
    steps: int
    planned_steps: int
    best_step: int
    dev_loss_before: float
    """NaN where over-fitting is not watched."""
    dev_loss: float
    train_loss: float
    """On a sample of training rows, under the weights that were kept: the gap to `dev_loss` is
    over-fitting. NaN where that is not watched."""
    seconds: float
    tokens: int
    """Tokens of real input seen, padding not counted."""
    label_tokens: int
    trained_parameters: int
    rows: int
    rows_without_labels: int
    stopped: Literal["finished", "early", "deadline"]
    cooling_steps: int = 0
    """Of `steps`, the last ones, in which the rate went down to a tenth because the time was up."""
    train_verbatim: float = 0.0
    """Share of the sampled training completions that greedy decoding gives back word for word."""
    dev_verbatim: float = 0.0
    """The same of dev completions: what is no memory of the rows."""
    sample_rows: int = 0
    how: dict[str, Any] = field(default_factory=dict)
    """What was chosen by detection, and why: number format, packs, layers, processes."""
    history: tuple[dict[str, float], ...] = ()


Report = Callable[[str, dict[str, Any]], None]
"""Takes an event's kind and its fields; see `store.Journal`."""

OnAnswer = Callable[[int, "Answer | Failure"], None]
"""Called with a prompt's position as soon as its answer stands."""


class Embedder(Protocol):
    """Turns texts into unit vectors."""

    name: str

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Float32, shape (len(texts), dimensions), rows of length 1."""
        ...


class Engine(Protocol):
    """A loaded base model: counts, answers and, where it can, trains."""

    base: Base
    grammars: tuple[GrammarKind, ...]
    """Kinds of grammar that its answers can be held to."""

    def count(self, prompt: Prompt, completion: str | None = None) -> int:
        """Tokens of the prompt as the model gets it; with a completion, of both and the end."""
        ...

    def generate(
        self,
        prompts: Sequence[Prompt],
        decoding: Decoding,
        *,
        weights: Weights | None = None,
        on_answer: OnAnswer | None = None,
    ) -> list[Answer | Failure]:
        """One answer a prompt, in the order of the prompts."""
        ...

    def score(
        self,
        prompts: Sequence[Prompt],
        continuations: Sequence[Sequence[str]],
        *,
        weights: Weights | None = None,
    ) -> list[tuple[Likelihood, ...] | Failure]:
        """How likely each prompt's continuations are, in the order given; nothing is generated.

        Raises ModelError where the base does not tell (an endpoint).
        """
        ...

    def train(
        self,
        train: Sequence[tuple[Prompt, str]],
        dev: Sequence[tuple[Prompt, str]],
        settings: TrainingSettings,
        folder: Path,
        *,
        report: Report,
        deadline: float | None = None,
    ) -> TrainingResult:
        """Train on prompt-completion pairs; leave the best weights (by dev loss) in `folder`.

        `deadline` is a `time.monotonic()` value after which training stops and keeps the best.
        Raises ModelError where the base cannot be trained or the loss diverges.
        """
        ...

    def check_pair(self, prompt: Prompt, completion: str) -> None:
        """Raise ChatTemplateError if the prompt is not a strict prefix of prompt + completion."""
        ...


class Metric(Protocol):
    """Judges one answer against the completion that was wanted."""

    name: str
    graded: bool
    """False if every score is 0 or 1."""
    why: str
    """Why this metric was chosen, one sentence."""

    def score(self, answer: str, reference: str) -> Score:
        """Raises MetricError if a user's function raises or returns no number in [0, 1]."""
        ...

"""tuneworthy.yaml -> frozen settings; every value knows where it came from."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from tuneworthy.errors import ProjectError

PROJECT_FILE = "tuneworthy.yaml"

ARM_NAMES = (
    "zero-shot",
    "system-prompt",
    "constrained",
    "few-shot",
    "rag",
    "linear",
    "lora",
    "full",
    "few-shot+lora",
    "rag+lora",
)
"""Every arm, cheapest first: the order in which `decide` runs them."""


def parse_duration(text: Any) -> float | None:
    """Seconds of `90s`, `30m`, `4h`; None for `none`. Raises ValueError for anything else."""
    if text is None or text == "none":
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh])\s*", str(text))
    if not match or float(match[1]) <= 0:
        raise ValueError("a duration is a number and s, m or h, such as 90s, 30m or 4h; or none")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def _whole_or_share(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number of rows, a share between 0 and 1, or a file")
    if isinstance(value, float) and not 0 < value < 1:
        raise ValueError("a share lies between 0 and 1; a number of rows is written without a dot")
    if isinstance(value, int) and value < 1:
        raise ValueError("at least one row")
    return value


def _none_if_blank(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    value.encode()  # raises ValueError for half a character, which YAML can escape
    return value.strip() or None


def _number_or_none(value: Any) -> Any:
    return None if value == "none" else value


Auto = Literal["auto"]
EngineName = Literal["auto", "transformers", "vllm"]
Size = Annotated[int | float | str | None, BeforeValidator(_whole_or_share)]
Duration = Annotated[float | None, BeforeValidator(parse_duration, json_schema_input_type=str)]


class _Settings(BaseModel):
    # Docstrings of fields become docs/reference/project-file.md.
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=False, use_attribute_docstrings=True
    )


class Columns(_Settings):
    """Names of the two columns that hold a row."""

    prompt: str
    """Column of the prompt (text, or chat turns), where rows have none of the known formats."""
    completion: str
    """Column of the completion, likewise."""


class DataSettings(_Settings):
    """Where rows and documents come from and how they are split."""

    examples: str
    """File or glob of rows (jsonl, json, csv, parquet), or hf:owner/name[:split]."""
    documents: str | None = None
    """Folder, file or glob of texts for the rag arm (md, txt, html, pdf, docx, jsonl)."""
    columns: Columns | None = None
    """Names of the two columns that hold a row, where they are none of the known formats."""
    group_by: str | None = None
    """Field of a row; rows with one value of it never straddle a split, and count together."""
    test: Size = None
    """Sealed rows: a number, a share, or a file of their own. Default: 20 % (20 to 200 rows)."""
    dev: Size = None
    """Rows to choose on: a number, a share, or a file. Default: 10 % (20 to 100 rows)."""
    train: Annotated[int | None, Field(ge=1)] = None
    """At most so many training rows. Default: all that are left."""


class Prices(_Settings):
    """US dollars: an hour of this machine, and a million tokens at an endpoint."""

    machine_hour_usd: Annotated[float, Field(ge=0)] = 1.2
    """An hour of this machine; not counted where an endpoint answers."""
    input_per_million_usd: Annotated[float, Field(ge=0)] = 0.0
    """A million prompt tokens."""
    output_per_million_usd: Annotated[float, Field(ge=0)] = 0.0
    """A million answer tokens."""


class EndpointSettings(_Settings):
    """How an endpoint is asked."""

    concurrency: Annotated[int, Field(ge=1, le=256)] = 8
    """Requests that are under way at one time."""
    max_usd: Annotated[Annotated[float, Field(gt=0)] | None, BeforeValidator(_number_or_none)] = (
        None
    )
    """US dollars, by `prices`, that one command never spends more of at the endpoint; or none."""


class FewShot(_Settings):
    """Examples in context."""

    k: Annotated[int, Field(ge=1, le=100)] = 10
    """Training rows in a prompt; fewer where the context is full."""
    select: Literal["auto", "fixed", "diverse", "random", "similar"] = "auto"
    """Drawn once, far apart, for each request, or like the prompt; auto: dev says, `random` apart."""


class SystemPromptSettings(_Settings):
    """How the system prompt is found, beside your instruction and drafts made from the rows."""

    reflect: str | None = None
    """A model that writes better prompts from what went wrong (GEPA): named as a base is."""
    calls: Annotated[int, Field(ge=20)] = 300
    """Answers of the base that this may take, on training and dev rows."""


class GrammarSettings(_Settings):
    """What answers are held to; without labels, regex and json_schema: what the rows share."""

    labels: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """The answers that there are, for the arm constrained. Default: read from the rows."""
    regex: str | None = None
    """A pattern for the whole answer, without look-around and back-references."""
    json_schema: str | None = None
    """File of a JSON Schema for the answer."""
    arms: Literal["all"] | tuple[str, ...] = ()
    """Arms to hold to it beside constrained: all, or a list such as [few-shot, lora]."""

    @model_validator(mode="after")
    def _one_kind(self) -> GrammarSettings:
        given = [kind for kind in ("labels", "regex", "json_schema") if getattr(self, kind)]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)}: give one of them")
        return self

    def holds(self, arm: str) -> bool:
        """Whether an arm other than `constrained` is held to the grammar."""
        return self.arms == "all" or arm in self.arms


class Lora(_Settings):
    """LoRA and its kin, by PEFT's names."""

    method: Literal[
        "lora", "lora+", "rslora", "dora", "pissa", "olora", "loha", "lokr", "vera", "oft", "qlora"
    ] = "lora"
    """The kind of adapter; qlora needs a GPU and bitsandbytes."""
    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    """Rank of the adapter; alpha is twice as much."""
    learning_rate: Annotated[float, Field(gt=0)] | Auto = "auto"
    """auto: the best of up to three on dev, after a short run each."""
    batch_rows: Annotated[int, Field(ge=1)] = 8
    """Rows of one optimizer step, over all processes; how they are packed changes no number."""
    epochs: Annotated[float, Field(gt=0)] | Auto = "auto"
    """Passes over the training rows at most, auto: 3; early stopping keeps the best on dev."""


class Full(_Settings):
    """Fine-tuning of all weights."""

    learning_rate: Annotated[float, Field(gt=0)] | Auto = "auto"
    """As for lora, from lower rates."""
    batch_rows: Annotated[int, Field(ge=1)] = 8
    """As for lora."""
    epochs: Annotated[float, Field(gt=0)] | Auto = "auto"
    """As for lora."""


class Project(_Settings):
    """One task: what `tuneworthy.yaml` says, with every default filled in."""

    task: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9-]*$", max_length=64)]
    """Name of the task: letters, digits and '-'."""
    instruction: Annotated[str | None, BeforeValidator(_none_if_blank)] = None
    """What to do, in one or two sentences; a candidate for the system prompt."""
    base: str = "smollm2-135m-instruct"
    """alias, folder, file.gguf, hf:owner/name, openai:model@url, or fake."""
    engine: EngineName = "auto"
    """What runs a base with weights; auto: vllm where it is installed and there is a GPU."""
    endpoint: EndpointSettings = EndpointSettings()
    data: DataSettings
    metric: str = "auto"
    """auto, exact, accuracy, json, chrf, rouge_l, regex:PATTERN or python:FILE.py:FUNCTION."""
    arms: Auto | tuple[str, ...] = "auto"
    """Which arms to measure; auto: all that apply."""
    margin: Annotated[float, Field(ge=0, lt=1)] = 0.02
    """How much score you would give up for the cheaper arm."""
    budget: Duration = None
    """Wall-clock limit of decide: 90s, 30m, 4h, or none."""
    likelihood: bool = False
    """Also measure how likely each arm finds the sealed completions: it differs where all score 0."""
    exhaustive: bool = False
    """Train every arm on all rows with three seeds, and on parts of them, even where it is settled."""
    requests_per_month: Annotated[int, Field(ge=0)] = 100_000
    """How many requests the task will have, for the cost side of the verdict."""
    prices: Prices = Prices()
    few_shot: FewShot = FewShot()
    system_prompt: SystemPromptSettings = SystemPromptSettings()
    grammar: GrammarSettings = GrammarSettings()
    lora: Lora = Lora()
    full: Full = Full()
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"
    """Under torchrun: ddp, each process with all weights; fsdp, with a part; auto: fsdp for full."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Of every random choice: splits, examples, training, resampling."""

    folder: Path = Field(default=Path(), exclude=True)
    """Where the project file lies; paths in it are relative to this."""
    given: frozenset[str] = Field(default=frozenset(), exclude=True)
    """Dotted names of the settings that the file gives."""
    overrides: dict[str, Any] = Field(default={}, exclude=True)
    """What the command line said in place of the file, by dotted name."""

    @model_validator(mode="after")
    def _known_arms(self) -> Project:
        if not self.arms:
            raise ValueError(f"no arms; write auto, or some of {', '.join(ARM_NAMES)}")
        held = self.grammar.arms
        for name in (*(() if self.arms == "auto" else self.arms), *(() if held == "all" else held)):
            if name not in ARM_NAMES:
                near = difflib.get_close_matches(name, ARM_NAMES, 1)
                raise ValueError(
                    f"no arm is called '{name}'"
                    + (f"; did you mean '{near[0]}'?" if near else "")
                    + f" (known: {', '.join(ARM_NAMES)})"
                )
        return self

    @model_validator(mode="after")
    def _ceiling_has_prices(self) -> Project:
        prices = self.prices
        if self.endpoint.max_usd and not (
            prices.input_per_million_usd or prices.output_per_million_usd
        ):
            raise ValueError("endpoint.max_usd needs prices: prices.output_per_million_usd")
        return self

    def resolved(self) -> dict[str, dict[str, Any]]:
        """Every setting by dotted name: `{"value": …, "origin": "given" | "default"}`."""
        return {
            name: {"value": value, "origin": "given" if name in self.given else "default"}
            for name, value in _flatten(self.model_dump(mode="json"))
        }


def _flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def load_project(path: Path | str = ".", overrides: dict[str, Any] | None = None) -> Project:
    """Read a project file, or the one in a folder.

    `overrides` are dotted names and values that win over the file (options of a command line).
    Raises ProjectError with `file:line` for a missing file, bad YAML, an unknown key (naming the
    nearest known one) or a value that cannot be.
    """
    file = Path(path)
    if file.is_dir():
        file = file / PROJECT_FILE
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ProjectError(
            "no such project file",
            where=str(file),
            hint="tuneworthy init DATA.jsonl writes one from your rows",
        ) from None
    except UnicodeDecodeError as error:
        raise ProjectError(
            f"not UTF-8 at byte {error.start}",
            where=str(file),
            hint=f"iconv -f latin1 -t utf-8 {file.name} > fixed.yaml",
        ) from None
    except OSError as error:
        raise ProjectError(
            f"cannot be read: {error.strerror}", where=str(file), hint=f"ls -l {file}"
        ) from None
    try:
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or "cannot be parsed"
        where = f"{file}:{mark.line + 1}" if mark else str(file)
        raise ProjectError(
            f"not YAML: {problem}", where=where, hint="mind the indentation and the colons"
        ) from None
    if not isinstance(values, dict):
        raise ProjectError(
            "a project file is a list of `key: value` lines",
            where=str(file),
            hint="start with `task: my-task` and `data: {examples: examples.jsonl}`",
        )
    for name, value in (overrides or {}).items():
        _override(values, name, value)
    given = frozenset(name for name, _ in _flatten(values))
    try:
        return Project(**values, folder=file.parent, given=given, overrides=dict(overrides or {}))
    except (ValidationError, TypeError) as error:
        raise _explain(error, file, tree, frozenset(overrides or ())) from None


def _override(values: dict[str, Any], name: str, value: Any) -> None:
    level = values
    *parents, last = name.split(".")
    for parent in parents:
        if level.get(parent) is None:
            level[parent] = {}
        level = level[parent]
        if not isinstance(level, dict):
            raise ProjectError(
                f"'{parent}' has no keys below it",
                where=f"--set {name}",
                hint="docs/reference/project-file.md lists every key",
            )
    level[last] = value


def _explain(
    error: ValidationError | TypeError, file: Path, tree: Any, overrides: frozenset[str]
) -> ProjectError:
    """The first of pydantic's complaints as one line with a place and a hint."""
    if isinstance(error, TypeError):  # a key that is no text, or a field that is not a setting
        return ProjectError(
            "a key that is no setting",
            where=str(file),
            hint=f"known keys: {', '.join(_known_keys([]))}",
        )
    complaints = error.errors()
    # An unknown key is the likelier cause of a missing one: say it first.
    complaint = next((c for c in complaints if c["type"] == "extra_forbidden"), complaints[0])
    path = [str(part) for part in complaint["loc"]]
    line = _line_of(tree, path)
    where = f"{file}:{line}" if line else str(file)
    name = ".".join(p for p in path if not p.startswith(("function-", "literal", "constrained")))
    if name in overrides:
        where = "command line"
    if complaint["type"] == "extra_forbidden":
        known = _known_keys(path[:-1])
        near = difflib.get_close_matches(path[-1], known, 1, cutoff=0.5)
        return ProjectError(
            f"unknown key '{name}'",
            where=where,
            hint=f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(known)}",
        )
    if complaint["type"] == "missing":
        return ProjectError(f"'{name}' is missing", where=where, hint=f"add a line `{path[-1]}: …`")
    reason = complaint["msg"].removeprefix("Value error, ")
    if complaint["type"] == "string_pattern_mismatch":
        reason = "a task's name has letters, digits and '-' only"
    field = f"'{name}': " if name else ""
    return ProjectError(
        f"{field}{reason} (got {complaint['input']!r:.80})" if name else reason,
        where=where,
        hint="docs/reference/project-file.md lists every key with its values",
    )


def _known_keys(path: list[str]) -> list[str]:
    model: Any = Project
    for part in path:
        inner = model.model_fields[part].annotation
        options = getattr(inner, "__args__", (inner,))
        model = next(o for o in options if isinstance(o, type) and issubclass(o, BaseModel))
    return [name for name in model.model_fields if name not in ("folder", "given", "overrides")]


def _line_of(tree: Any, path: list[str]) -> int | None:
    """The line, counted from 1, on which a key of the file stands; its parent's if it is absent."""
    line = None
    for part in path:
        if not isinstance(tree, yaml.MappingNode):
            break
        for key, value in tree.value:
            if key.value == part:
                line, tree = key.start_mark.line + 1, value
                break
        else:
            break
    return line

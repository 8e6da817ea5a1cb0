"""`export`: a trained arm as files that others load, loaded and compared before anybody gets them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneworthy import store
from tuneworthy.arms import ARMS
from tuneworthy.arms.recipe import FittedRecipe, Kitchen, Recipe
from tuneworthy.config import Project
from tuneworthy.data import ledger
from tuneworthy.engine import FAKES, open_embedder
from tuneworthy.errors import ModelError, ProjectError, StorageError
from tuneworthy.report.card import card
from tuneworthy.retrieval.chunk import chunk
from tuneworthy.retrieval.index import Index
from tuneworthy.retrieval.load import load_documents
from tuneworthy.store import Journal, RunFolder
from tuneworthy.types import Decoding, Message, Prompt, Weights
from tuneworthy.workflows import concluding
from tuneworthy.workflows.provenance import provenance, recipe
from tuneworthy.workflows.session import Listener

if TYPE_CHECKING:
    from tuneworthy.engine.agreement import Agreement, Live
    from tuneworthy.engine.local import LocalEngine

FORMATS: dict[str, tuple[str, ...]] = {
    "adapter": ("as-trained",),
    "merged": ("bfloat16", "float16", "float32"),
    "gguf": ("float16", "bfloat16", "float32", "q8_0"),
    "ollama": ("q8_0", "float16", "bfloat16", "float32"),
}
"""Formats with their precisions, the usual one first."""
ROWS = 20
"""Dev rows whose answers are compared."""


def export(
    path: Path,
    arm: str,
    *,
    to: Path | None = None,
    format_: str = "adapter",
    precision: str | None = None,
    run: str | None = None,
    openvino: Path | None = None,
    listener: Listener | None = None,
) -> Path:
    """Write an arm's weights in a format, verify the files, and put them in `to`; its path.

    `openvino`: an interpreter with OpenVINO GenAI, which then loads GGUF files too. Raises
    ProjectError for what cannot be exported so, ModelError if the files answer otherwise than the
    arm: then nothing is left behind.
    """
    precision = _precision(format_, precision)
    folder, project = find_arm(path, arm, run)
    fit = _exportable(folder, arm, format_)
    target = to or project.folder / "exports" / f"{project.task}-{arm}-{format_}-{precision}"
    _check_target(target)
    journal = Journal()
    if listener:
        journal.listeners.append(listener)
    made = _Export(folder, project, arm, fit, format_, precision, journal)
    with store.replaced(target) as draft:
        made.write(draft)
        checks = made.verify(draft, openvino)
        record = made.record(draft, checks)
        store.write_json(draft / "export.json", record)
        store.write_text(draft / "README.md", card(record))
    return target


def _precision(format_: str, precision: str | None) -> str:
    if format_ not in FORMATS:
        raise ProjectError(
            f"no format is called '{format_}'",
            where="--format",
            hint=f"formats: {', '.join(FORMATS)}",
        )
    known = FORMATS[format_]
    if precision is not None and precision not in known:
        raise ProjectError(
            f"{format_} is not written in '{precision}'",
            where="--precision",
            hint=f"{format_} comes in: {', '.join(known)}",
        )
    return precision or known[0]


def find_arm(path: Path, arm: str, run: str | None = None) -> tuple[RunFolder, Project]:
    """The named run, or the newest in which the arm is fitted. Raises ProjectError, StorageError."""
    if arm not in ARMS:
        raise ProjectError(
            f"no arm is called '{arm}'", where="ARM", hint=f"known arms: {', '.join(ARMS)}"
        )
    found = store.find_runs(path, run)
    fitted = [folder for folder in found if folder.fit(arm).exists()]
    if not fitted:
        raise StorageError(
            f"{arm} is not fitted here",
            where=str(run or path),
            hint=f"tuneworthy train {arm} {path}",
        )
    return fitted[-1], concluding.project_of(fitted[-1])


def _exportable(folder: RunFolder, arm: str, format_: str) -> dict[str, Any]:
    """The arm's fit.json. Raises ProjectError where there are no weights for this format."""
    fit: dict[str, Any] = store.read_json(folder.fit(arm))
    base = store.read_json(folder.config)["base"]["name"]
    if fit["recipe"] is None or fit["recipe"]["weights"] is None:
        raise ProjectError(
            f"{arm} has no weights of its own to export: it is {base} with what stands in "
            f"arms/{arm}/fit.json",
            where="ARM",
            hint="export a trained arm, such as lora",
        )
    if base in FAKES:
        raise ProjectError(
            f"the base {base} has no weights, so there is nothing to export",
            where="base",
            hint="tuneworthy retune --base smollm2-135m-instruct",
        )
    if format_ == "adapter" and fit["recipe"]["weights"] != "adapter":
        raise ProjectError(
            f"{arm} has all weights of its own and is no adapter",
            where="--format",
            hint="--format merged",
        )
    _check_unchanged(folder, arm)
    return fit


def _check_unchanged(folder: RunFolder, arm: str) -> None:
    """Raises StorageError if the weights are no longer those that were measured."""
    if not folder.manifest.exists():
        return
    for name, sha256 in store.read_json(folder.manifest)["files"].items():
        path = folder.path / name
        if name.startswith(f"arms/{arm}/model/") and (
            not path.exists() or store.sha256_file(path) != sha256
        ):
            raise StorageError(
                f"{name} is not what was measured",
                where=str(folder.path),
                hint=f"tuneworthy report {folder.path} --verify",
            )


def _check_target(target: Path) -> None:
    """An export may be replaced, anything else may not."""
    if target.exists() and not (target / "export.json").exists():
        if target.is_dir() and not any(target.iterdir()):
            return
        raise StorageError(
            "is there already and is no export", where=str(target), hint="--to ANOTHER/FOLDER"
        )


class _Export:
    """One export on its way."""

    def __init__(
        self,
        folder: RunFolder,
        project: Project,
        arm: str,
        fit: dict[str, Any],
        format_: str,
        precision: str,
        journal: Journal,
    ) -> None:
        self.folder, self.project, self.arm, self.fit = folder, project, arm, fit
        self.format, self.precision, self.journal = format_, precision, journal
        self.config = store.read_json(folder.config)
        self.recipe = Recipe.from_json(fit["recipe"], folder.model(arm))
        assert self.recipe.weights
        self.weights: Weights = self.recipe.weights
        self.not_checked: list[str] = []
        self.engine = self._open()
        self.rows = ledger.read_rows_file(folder.rows)

    def say(self, text: str) -> None:
        self.journal("note", {"text": text})

    def _open(self) -> LocalEngine:
        from tuneworthy.engine.local import LocalEngine
        from tuneworthy.engine.models import locate

        located = locate(self.config["base"]["name"], self.project.folder, self.say)
        if located.sha256 != self.config["base"]["sha256"]:
            raise ModelError(
                f"{located.name} is not the base that {self.arm} was trained on: it has changed",
                where="base",
                hint="put the base's files back, or: tuneworthy decide",
            )
        self.say(f"loading {located.name}")
        return LocalEngine(located, self.say)

    @property
    def made(self) -> dict[str, Any]:
        """Base, data, packages and machine: the recipe stands beside it."""
        return {k: v for k, v in provenance(self.folder).items() if k != "recipes"}

    @cached_property
    def prompts(self) -> list[Prompt]:
        """Dev rows' prompts with everything that the arm adds."""
        project, engine = self.project, self.engine

        def search() -> Index:
            documents = load_documents(project.folder / str(project.data.documents))
            embedder = open_embedder(project.base, self.say)
            return Index.build(chunk(documents), embedder, project.folder / "runs" / ".index")

        kitchen = Kitchen(
            engine=engine,
            decoding=self.decoding,
            train=self.rows.train,
            embedder=lambda: open_embedder(project.base, self.say),
            search=search if project.data.documents else None,
        )
        rows = self.rows.dev[:ROWS]
        return FittedRecipe(self.recipe, kitchen).prompts([row.prompt for row in rows])

    @property
    def decoding(self) -> Decoding:
        """Greedy and without a grammar: what the files can do by themselves."""
        return Decoding(max_tokens=self.config["settings"]["decoding.max_tokens"]["value"])

    def write(self, draft: Path) -> None:
        from tuneworthy.engine import export as files

        located = self.engine.located
        self.say(f"writing {self.arm} as {self.format}, {self.precision}")
        if self.format == "adapter":
            files.write_adapter(located, self.weights, draft)
        elif self.format == "merged":
            files.write_merged(located, self.weights, draft, self.precision)
        else:
            name = f"{self.project.task} {self.arm}"
            made = {**self.made, "recipe": recipe(self.folder, self.arm)}
            files.write_gguf(located, self.weights, draft, self.precision, name, made)
        if self.format == "ollama":
            store.write_text(draft / "Modelfile", self._modelfile())

    def _modelfile(self) -> str:
        from tuneworthy.engine import ollama
        from tuneworthy.engine.export import GGUF_FILE

        examples: list[Message] = []
        if self.recipe.examples and self.recipe.examples.select == "fixed":
            by_id = {row.id: row for row in self.rows.train}
            for row in (by_id[i] for i in self.recipe.examples.ids):
                examples += [*row.prompt, Message("assistant", row.completion)]
        chat = self.engine.chat
        return ollama.modelfile(
            ollama.take_apart(chat, self.prompts),
            chat,
            GGUF_FILE,
            context_length=min(8192, self.engine.base.context_length),
            system=self.recipe.system,
            examples=examples,
        )

    def verify(self, draft: Path, openvino: Path | None) -> list[Agreement]:
        """Have the consumers answer. Raises ModelError if one says something else."""
        from tuneworthy.engine.agreement import Live

        self.say(f"asking the live arm {min(ROWS, len(self.rows.dev))} dev rows")
        live = Live(self.engine, self.weights, self.prompts, self.decoding)
        live.forget()
        found = [
            live.compare(name, texts, self._noise_of())
            for name, texts in self._consumers(draft, live, openvino)
        ]
        for agreement in found:
            self.say(f"{agreement.consumer}: {agreement.said}")
            if not agreement.agrees:
                raise _disagreement(agreement, self.format)
        return found

    def _noise_of(self) -> str:
        return self.precision if self.precision != "as-trained" else self.engine.format.name

    def _consumers(
        self, draft: Path, live: Live, openvino: Path | None
    ) -> Sequence[tuple[str, list[str]]]:
        from tuneworthy.engine import consumers

        engine, most, prompts = self.engine, self.decoding.max_tokens, live.prompts
        asked = (engine.located, draft, prompts, most)
        dtype = engine.format.dtype
        if self.format == "adapter":
            told = self._counter("PEFT", len(prompts))
            return [("PEFT", consumers.by_peft(*asked, dtype, told))]
        if self.format == "merged":
            told = self._counter("transformers", len(prompts))
            return [("transformers", consumers.by_transformers(*asked, told))]
        name = "transformers' GGUF reader"
        told = self._counter(name, len(prompts))
        found = [(name, consumers.by_transformers_gguf(*asked, dtype, told))]
        answers = self._by_openvino(draft, prompts, openvino)
        if answers is not None:
            found.append(("OpenVINO GenAI", answers))
        if self.format == "ollama":
            self.not_checked.append(
                "Ollama itself was not run; the prompts of its template were compared with the "
                "chat template's"
            )
        return found

    def _by_openvino(
        self, draft: Path, prompts: Sequence[Prompt], openvino: Path | None
    ) -> list[str] | None:
        """Its answers; None, and said in the record, where it cannot be asked."""
        from tuneworthy.engine import consumers

        engine, python = self.engine, consumers.openvino_python(openvino)
        if python is None:
            self.not_checked.append("OpenVINO GenAI is not installed")
            return None
        self.say("asking OpenVINO GenAI")
        texts = [_bare(engine, prompt) for prompt in prompts]
        most, stop = self.decoding.max_tokens, engine.chat.stop
        answers = consumers.by_openvino(python, draft, texts, most, stop)
        if answers is None:
            kind = engine.base.details["model_type"]
            self.not_checked.append(f"OpenVINO GenAI does not read GGUF files of {kind}")
        return answers

    def _counter(self, name: str, total: int) -> Callable[[int], None]:
        def told(position: int) -> None:
            fields = {"phase": f"answering through {name}", "done": position + 1, "total": total}
            self.journal("tick", {"arm": self.arm, **fields})

        return told

    def record(self, draft: Path, checks: Sequence[Agreement]) -> dict[str, Any]:
        """export.json, version 1."""
        given = self.recipe
        return {
            "version": 1,
            "task": self.project.task,
            "arm": self.arm,
            "format": self.format,
            "precision": self.precision,
            "files": {p.name: store.sha256_file(p) for p in sorted(draft.iterdir())},
            "provenance": self.made,
            "recipe": recipe(self.folder, self.arm),
            "measured": self._measured(),
            "needs": {
                "system": given.system,
                "examples": given.to_json()["examples"],
                "passages": given.passages,
                "grammar": bool(self.fit.get("grammar")),
            },
            "checks": [check.to_json() for check in checks],
            "not_checked": self.not_checked,
            "created": store.now(),
        }

    def _measured(self) -> dict[str, Any] | None:
        if not self.folder.decision.exists():
            return None
        decision = store.read_json(self.folder.decision)
        arm = next((a for a in decision["arms"] if a["arm"] == self.arm), None)
        if arm is None:
            return None
        return {
            "metric": decision["metric"],
            **{key: arm[key] for key in ("score", "interval", "n", "failures")},
            "verdict": decision["verdict"],
            "adopted": decision["arm"],
        }


def _bare(engine: LocalEngine, prompt: Prompt) -> str:
    """A prompt as text, without the BOS that a runtime puts in front by itself."""
    text, bos = engine.chat.render(prompt), engine.chat.tokenizer.bos_token
    return text.removeprefix(bos) if engine.chat.adds_bos and bos else text


def _disagreement(agreement: Agreement, format_: str) -> ModelError:
    mine, theirs, _ = max(agreement.differing, key=lambda d: d[2])
    return ModelError(
        f"{agreement.consumer} does not answer as the live arm does: {agreement.said}; the arm "
        f"says {mine[:60]!r}, the export {theirs[:60]!r}",
        where=f"--format {format_}",
        hint="nothing was exported; try --precision float32, or another format",
    )

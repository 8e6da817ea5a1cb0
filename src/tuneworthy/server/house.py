"""What a server serves: projects with their runs, promoted arms, fine-tuned models, and its state."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tuneworthy import store
from tuneworthy.config import PROJECT_FILE, Project, load_project
from tuneworthy.errors import ProjectError, StorageError, TuneworthyError
from tuneworthy.server import promotion
from tuneworthy.server.answering import Answering
from tuneworthy.server.jobs.client import Jobs
from tuneworthy.server.keys import Keys
from tuneworthy.server.promotion import Choice
from tuneworthy.server.traffic import Traffic
from tuneworthy.store import RunFolder
from tuneworthy.workflows.serving import measured_arms


@dataclass(frozen=True, slots=True)
class Place:
    """What answers a request: an arm of a run, and in whose name."""

    model: str
    """As the caller named it."""
    project: Path
    run: RunFolder
    arm: str
    shadow: Choice | None = None
    """Answers too, and is only recorded."""


class House:
    """The folders that a server looks after. Cheap to make: nothing is loaded until asked for."""

    def __init__(
        self,
        folders: Sequence[Path],
        state: Path | None = None,
        *,
        jobs: str | None = None,
        stand_ins: Mapping[str, str] | None = None,
        traffic: Traffic | None = None,
        merge: bool = False,
    ) -> None:
        """`folders` hold a project each, or projects. Raises ProjectError where none does.

        `jobs`: a PostgreSQL URL for the queue. `stand_ins`: names of hosted models and the bases
        that are trained in their place. `traffic`: what is logged, if anything. `merge`: adapters are
        merged into their bases.
        """
        self.state = state or store.cache_folder() / "server"
        self.stand_ins = dict(stand_ins or {})
        self.traffic, self.merge = traffic, merge
        self.keys = Keys(self.state)
        self.jobs = Jobs(self.state, jobs)
        self._folders = [folder for given in folders for folder in project_folders(given)]
        names = [project.task for project in self.projects.values()]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise ProjectError(
                f"two projects are called '{twice}'", where="task", hint="rename one of them"
            )

    @cached_property
    def answering(self) -> Answering:
        return Answering(merge=self.merge)

    @property
    def projects(self) -> dict[str, Project]:
        """Task -> project, as the files say now; a broken one is left out while it is broken."""
        found = {}
        for folder in self._folders:
            try:
                project = load_project(folder)
            except TuneworthyError:
                continue
            found[project.task] = project
        return found

    def models(self) -> list[str]:
        """Every name that answers: tasks, their arms, fine-tuned models."""
        names = []
        for task, project in self.projects.items():
            if promotion.answering(project.folder) is not None:
                names.append(task)
            run = self._run(project)
            names += [f"{task}/{arm}" for arm in (measured_arms(run) if run else ())]
        return [*names, *sorted(self._tuned())]

    def folders(self) -> list[Path]:
        """Folders that traffic is logged in: those of projects and of fine-tuned models."""
        tuned = {Path(store.read_json(path)["project"]) for path in self._tuned().values()}
        return [*(project.folder for project in self.projects.values()), *sorted(tuned)]

    def resolve(self, model: str, draw: random.Random | None = None) -> Place | None:
        """What answers under a name; None if nothing does. `draw` decides on canaries."""
        tuned = self._tuned().get(model)
        if tuned is not None:
            record = store.read_json(tuned)
            run = RunFolder(Path(record["run"]))
            return Place(model, Path(record["project"]), run, record["arm"])
        task, _, arm = model.partition("/")
        project = self.projects.get(task)
        if project is None:
            return None
        if arm:
            run_of_arm = self._run(project)
            if run_of_arm is None or arm not in measured_arms(run_of_arm):
                return None
            return Place(model, project.folder, run_of_arm, arm)
        return self._promoted(model, project, draw or random.SystemRandom())

    def _promoted(self, model: str, project: Project, draw: random.Random) -> Place | None:
        state, choice = promotion.read(project.folder), promotion.answering(project.folder)
        if choice is None:
            return None
        if state.canary is not None and draw.random() < state.canary.share:
            choice = Choice(state.canary.arm, state.canary.run)
        run = RunFolder(project.folder / "runs" / choice.run)
        return Place(model, project.folder, run, choice.arm, state.shadow)

    def _run(self, project: Project) -> RunFolder | None:
        try:
            return promotion.finished_run(project.folder)
        except StorageError:
            return None

    def _tuned(self) -> dict[str, Path]:
        """Names of fine-tuned models, and the records that jobs have written of them."""
        folder = self.state / "models"
        paths = folder.glob("*.json") if folder.is_dir() else ()
        return {str(store.read_json(path)["model"]): path for path in paths}

    def close(self) -> None:
        if "answering" in self.__dict__:
            self.answering.close()


def project_folders(given: Path) -> list[Path]:
    """The folder if it holds a project, else those in it that do. Raises ProjectError if none does."""
    if given.is_file():
        given = given.parent
    if (given / PROJECT_FILE).exists():
        return [given]
    inside = sorted(given.iterdir()) if given.is_dir() else []
    found = [p for p in inside if not re.match(r"\.", p.name) and (p / PROJECT_FILE).exists()]
    if not found:
        raise ProjectError(
            f"holds no {PROJECT_FILE}, and no folder in it does",
            where=str(given),
            hint="tuneworthy example home-commands DIR builds a project to try",
        )
    return found

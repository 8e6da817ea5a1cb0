"""Which base a name in a request stands for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tuneworthy.config import Project
from tuneworthy.engine.models import ALIASES

FAKE = "fake"
CARRIED = ("instruction", "margin", "requests_per_month", "prices")
"""What a job on a served task's base takes over from the task: what is judged by, and the words."""


def trainable(projects: Mapping[str, Project], stand_ins: Mapping[str, str]) -> list[str]:
    """The names that a job may train."""
    return [*ALIASES, FAKE, *projects, *stand_ins]


def base_for(
    model: str, projects: Mapping[str, Project], stand_ins: Mapping[str, str]
) -> tuple[str, dict[str, Any]] | None:
    """The base to train, with settings of the project file; None for an unknown name.

    `stand_ins` are names of hosted models that an existing script asks for. No request names a
    folder or a hub: those are the bases of tasks that whoever runs the server has chosen.
    """
    model = stand_ins.get(model, model)
    if model in ALIASES or model == FAKE:
        return model, {}
    project = projects.get(model)
    if project is None or project.base.startswith("openai:"):
        return None
    base = project.base
    if base not in ALIASES and base != FAKE and not base.startswith("hf:"):
        base = str((project.folder / base).resolve())
    given = project.model_dump(mode="json")
    return base, {name: given[name] for name in CARRIED}

"""Every error a user can meet, on one screen.

TuneworthyError                 exit code 1: one `error:` line, one `hint:` line
├── ProjectError                tuneworthy.yaml: unknown key, wrong value, missing file
├── DataError                   rows: broken line, missing field, too few rows, bad encoding
├── DocumentError               documents that cannot be read
├── ModelError                  a base model that cannot be found, fetched or loaded
│   ├── PickleRefused           weights in a format that runs code when loaded
│   ├── ChatTemplateError       a template that would damage training silently
│   └── TrainingDiverged        a loss that is no longer a number
├── EndpointError               an endpoint that fails, hangs or answers garbage
├── MetricError                 a metric that is unknown or that raised
├── FetchError                  a package registry that cannot be reached, or a wrong hash
├── StorageError                a full disk, a folder that cannot be written, a torn file
├── MissingExtra                an optional package is needed; the hint is its pip line
└── GateClosed                  exit code 3: the run is fine, a gate said no
"""

from __future__ import annotations

__all__ = [
    "ChatTemplateError",
    "DataError",
    "DocumentError",
    "EndpointError",
    "FetchError",
    "GateClosed",
    "MetricError",
    "MissingExtra",
    "ModelError",
    "PickleRefused",
    "ProjectError",
    "StorageError",
    "TrainingDiverged",
    "TuneworthyError",
]


class TuneworthyError(Exception):
    """What went wrong, where, and one thing to do about it.

    `what` names the value; `where` is `file:line` (rows count from 1) or a field; `hint`
    is one runnable step. `str(error)` is the text of the `error:` line.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" if self.where else self.what


class ProjectError(TuneworthyError):
    """The project file is missing, unreadable, or says something that cannot be."""


class DataError(TuneworthyError):
    """Rows that cannot be used."""


class DocumentError(TuneworthyError):
    """Documents that cannot be used."""


class ModelError(TuneworthyError):
    """A base model that cannot be used."""


class PickleRefused(ModelError):
    """Weights stored as a pickle: loading one runs whatever code it holds."""


class ChatTemplateError(ModelError):
    """The chat template would make training differ from answering."""


class TrainingDiverged(ModelError):
    """The loss is no longer a number: this learning rate is too high for these rows."""


class EndpointError(TuneworthyError):
    """An OpenAI-compatible endpoint that does not do its part."""


class MetricError(TuneworthyError):
    """A metric that is unknown, or a metric function that raised."""


class FetchError(TuneworthyError):
    """Something could not be fetched from a package registry, or was not what it should be."""


class StorageError(TuneworthyError):
    """The run folder cannot be written or read."""


class MissingExtra(TuneworthyError):
    """An optional package is not installed."""


class GateClosed(TuneworthyError):
    """A gate that the user asked for said no."""

    exit_code = 3

"""A function of the user's own."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import math
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any

from tuneworthy.errors import MetricError
from tuneworthy.evaluation.metrics.words import shortened
from tuneworthy.types import Score


@dataclass(slots=True)
class PythonFunction:
    """What the user's `function(answer, reference)` returns: a number in [0, 1], or a bool."""

    why: str
    name: str
    file: Path
    function: Callable[[str, str], Any]
    graded: bool = True

    def score(self, answer: str, reference: str) -> Score:
        """Raises MetricError, with the line of the user's file, if the function raises."""
        try:
            value = self.function(answer, reference)
        except Exception as error:
            raise MetricError(
                f"{_told(error)} on the answer {shortened(answer)}",
                where=f"{self.file.name}:{_line(error, self.file)}",
                hint=self._try(answer, reference),
            ) from error
        number = _number(value)
        if number is None or not 0 <= number <= 1:
            raise MetricError(
                f"returned {value!r:.80} on the answer {shortened(answer)}: "
                "a score is a number between 0 and 1, or a bool",
                where=_defined_at(self.function, self.file),
                hint=self._try(answer, reference),
            )
        return Score(number)

    def _try(self, answer: str, reference: str) -> str:
        name = self.name.rpartition(":")[2]
        return (
            f"in Python, beside {self.file.name}: "
            f"from {self.file.stem} import {name}; "
            f"{name}({shortened(answer)}, {shortened(reference)})"
        )


def python_function(argument: str, why: str, folder: Path) -> PythonFunction:
    """The metric of `FILE.py:FUNC`, the file being relative to the project's folder.

    Raises MetricError if the file or the function is missing, or if the file raises when loaded.
    """
    path, colon, function = argument.rpartition(":")
    if not colon or not path.endswith(".py") or not function.isidentifier():
        raise MetricError(
            f"metric python:{argument}: not FILE.py:FUNC",
            where="metric",
            hint="write metric: python:metric.py:score",
        )
    file = (folder / path).absolute()  # as tracebacks name it
    module = _load(file)
    found = getattr(module, function, None)
    if not callable(found):
        known = [n for n, v in vars(module).items() if inspect.isfunction(v)]
        near = difflib.get_close_matches(function, known, 1)
        raise MetricError(
            f"no function is called '{function}'",
            where=file.name,
            hint=f"did you mean metric: python:{path}:{near[0]}"
            if near
            else f"add: def {function}(answer, reference): return answer == reference",
        )
    return PythonFunction(why, f"python:{argument}", file, found)


def _load(file: Path) -> ModuleType:
    name = f"tuneworthy_metric_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if not file.is_file() or spec is None or spec.loader is None:
        raise MetricError("no such file for the metric", where=str(file), hint=f"ls {file.parent}")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and the like look their module up by name while it loads.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise MetricError(
            f"cannot be loaded: {_told(error)}",
            where=f"{file.name}:{_line(error, file)}",
            hint=f"python {file} shows the whole error",
        ) from error
    return module


def _told(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text:.200}" if text else type(error).__name__


def _line(error: Exception, file: Path) -> int:
    """The last line of the user's file that the error passed, counted from 1."""
    if isinstance(error, SyntaxError) and error.filename == str(file) and error.lineno:
        return error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(file) and frame.lineno]
    return lines[-1] if lines else 1


def _defined_at(function: Callable[..., Any], file: Path) -> str:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{file.name}:{code.co_firstlineno}" if code else file.name


def _number(value: Any) -> float | None:
    import numpy as np

    if not isinstance(value, Real | np.bool_):
        return None
    number = float(value)
    return None if math.isnan(number) else number

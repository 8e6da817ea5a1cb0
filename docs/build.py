"""Writes docs/reference/ from the code; `make docs` runs it, a test fails when a page is stale."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer

import tuneworthy
from tuneworthy import api, errors
from tuneworthy.cli import app
from tuneworthy.config import Project

REFERENCE = Path(__file__).parent / "reference"
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
MADE = "<!-- Made by docs/build.py: change the code, then run `make docs`. -->"
COLUMNS = 80


def command_line() -> str:
    """The `--help` of every verb."""
    group: Any = typer.main.get_command(app)
    parts = ["# Command line", MADE, _block("text", _help(group, "tuneworthy"))]
    for name, verb in group.commands.items():
        parts += [f"## {name}", _block("text", _help(verb, f"tuneworthy {name}"))]
    parts += [
        "## Exit codes",
        "0 done · 1 the input or environment is wrong, or a run is not what it says "
        "(`report --verify`) · 2 wrong usage · 3 a gate said no (`check --strict`, "
        "`decide --require`, `retune --gate`) · 130 interrupted; what was finished is kept.",
    ]
    return "\n\n".join(parts) + "\n"


def _help(command: Any, name: str) -> str:
    context = command.context_class(
        command, info_name=name, terminal_width=COLUMNS, max_content_width=COLUMNS
    )
    text: str = command.get_help(context)
    return "\n".join(line.rstrip() for line in text.splitlines())


def project_file() -> str:
    """Every key of `tuneworthy.yaml`."""
    schema = Project.model_json_schema()
    rows = [
        f"| `{name}` | {_kind(field)} | {default} | {field['description']} |"
        for name, field, default in _keys(schema, schema["$defs"])
    ]
    return (
        "\n\n".join(
            [
                "# Project file",
                MADE,
                "`tuneworthy.yaml`, one a task; paths in it are relative to its folder. An unknown key "
                "is an error that names the nearest known one. `task` and `data.examples` are needed, "
                "everything else has a default. `--set KEY=VALUE` on the command line wins over the "
                "file, by the names below.",
                "| key | value | default | what it is |\n|---|---|---|---|\n" + "\n".join(rows),
            ]
        )
        + "\n"
    )


def _keys(
    schema: dict[str, Any], models: dict[str, Any], prefix: str = ""
) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Dotted name, schema and default of each key, those of nested models after their parent's."""
    for name, field in schema["properties"].items():
        if not prefix and name in ("folder", "given", "overrides"):
            continue  # known to the program only
        inner = _model(field)
        if inner is not None:
            # What an optional part needs is not needed without that part.
            model = models[inner] if "$ref" in field else {**models[inner], "required": []}
            yield from _keys(model, models, f"{prefix}{name}.")
            continue
        yield prefix + name, field, _default(field, name in schema.get("required", ()))


def _model(field: dict[str, Any]) -> str | None:
    for option in (field, *field.get("anyOf", ()), *field.get("allOf", ())):
        if "$ref" in option:
            return str(option["$ref"].rpartition("/")[2])
    return None


def _default(field: dict[str, Any], required: bool) -> str:
    if required:
        return "needed"
    default = field.get("default")
    if default is None:
        return ""
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def _kind(field: dict[str, Any]) -> str:
    options = field.get("anyOf", [field])
    words = [_word(option) for option in options if option.get("type") != "null"]
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _word(option: dict[str, Any]) -> str:
    """One kind of value in words, with its bounds."""
    if "const" in option:
        return f"`{option['const']}`"
    if "enum" in option:
        return ", ".join(f"`{value}`" for value in option["enum"])
    words = {"string": "text", "integer": "whole number", "number": "number", "array": "list"}
    words["boolean"] = "true or false"
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {option[key]:,}" for key, sign in signs.items() if key in option]
    return " ".join([words[option["type"]], " and ".join(bounds)]).strip()


def python_api() -> str:
    """Everything that `import tuneworthy` offers, from the source of `api.py`."""
    nodes = {
        node.name: node
        for node in ast.parse(Path(api.__file__).read_text("utf-8")).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    names = [name for name in tuneworthy.__all__ if name in nodes]
    functions = [nodes[name] for name in names if isinstance(nodes[name], ast.FunctionDef)]
    records = [nodes[name] for name in names if isinstance(nodes[name], ast.ClassDef)]
    parts = ["# Python", MADE, _block("python", (tuneworthy.__doc__ or "").partition("\n\n")[2])]
    parts += ["## Functions", *(_function(node) for node in functions)]  # type: ignore[arg-type]
    parts += ["## Records", "All are frozen.", *(_record(node) for node in records)]  # type: ignore[arg-type]
    parts += ["## Errors", _block("text", errors.__doc__ or "")]
    return "\n\n".join(parts) + "\n"


def calibration() -> str:
    """Every forecast of the decision benchmark beside what came true."""
    if str(BENCHMARKS) not in sys.path:
        sys.path.insert(0, str(BENCHMARKS))
    benchmark = importlib.import_module("decide")
    outcomes = benchmark.stored(benchmark.RESULTS)
    missing = [name for name in benchmark.TASKS if name not in outcomes]
    return (
        "\n\n".join(
            [
                "# Calibration of forecasts",
                MADE,
                "What [forecasts](../concepts/forecast.md) say today of the learning curves that "
                "[`benchmarks/decide.py`](../guides/benchmarks.md#deciding) has stored, trained on parts of the "
                "rows, and what training on all of them came to. *Tuned*: tasks that whoever changes the "
                "forecast may look at; *aside*: those that are looked at only to publish this. 80 % bands "
                "should hold 75 to 90 % of the time: fewer is overconfident, more is too vague. The loss's law "
                "has had a bend since log-lines and aws-limits were seen, not numpydoc: of the loss, only the last "
                "of them is a test of it.",
                f"Not measured yet: {', '.join(missing)}."
                if missing
                else "All eight tasks are in it.",
                benchmark.calibration().strip(),
            ]
        )
        + "\n"
    )


def _function(node: ast.FunctionDef) -> str:
    documented = ast.get_docstring(node) or ""
    return f"### {node.name}\n\n{_block('python', _signature(node))}\n\n{documented}"


def _signature(node: ast.FunctionDef) -> str:
    """On one line, or one line an argument where it is long."""
    arguments, result = _arguments(node.args), ast.unparse(node.returns or ast.Constant(None))
    line = f"{node.name}({', '.join(arguments)}) -> {result}"
    if len(line) <= COLUMNS:
        return line
    return f"{node.name}(\n" + "".join(f"    {a},\n" for a in arguments) + f") -> {result}"


def _arguments(arguments: ast.arguments) -> list[str]:
    """Each argument as it is written, with the `*` before keyword-only ones."""
    plain = [*arguments.posonlyargs, *arguments.args]
    padding = [None] * (len(plain) - len(arguments.defaults))
    written = [_argument(a, d) for a, d in zip(plain, [*padding, *arguments.defaults])]
    if arguments.kwonlyargs:
        written.append("*")
    written += [_argument(a, d) for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults)]
    if arguments.kwarg:
        written.append("**" + ast.unparse(arguments.kwarg))
    return written


def _argument(argument: ast.arg, default: ast.expr | None) -> str:
    text = ast.unparse(argument)
    return text if default is None else f"{text} = {ast.unparse(default)}"


def _record(node: ast.ClassDef) -> str:
    lines = [ast.unparse(item) for item in node.body if isinstance(item, ast.AnnAssign)]
    parts = [f"### {node.name}", ast.get_docstring(node) or "", _block("python", "\n".join(lines))]
    for item in node.body:
        if isinstance(item, ast.FunctionDef):
            parts.append(f"`{_signature(item)}`: {ast.get_docstring(item)}")
    return "\n\n".join(parts)


def _block(language: str, text: str) -> str:
    return f"```{language}\n{text.strip()}\n```"


PAGES: dict[str, Callable[[], str]] = {
    "command-line.md": command_line,
    "project-file.md": project_file,
    "python.md": python_api,
    "calibration.md": calibration,
}


def main() -> None:
    REFERENCE.mkdir(exist_ok=True)
    for name, make in PAGES.items():
        (REFERENCE / name).write_text(make(), "utf-8")
        print(f"docs/reference/{name}", file=sys.stderr)


if __name__ == "__main__":
    main()

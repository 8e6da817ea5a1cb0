"""What keeps the house clean: tools that must pass, and rules that no tool knows."""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys
import tomllib
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import tuneworthy as tw
from tuneworthy import errors
from tuneworthy.arms import ARMS
from tuneworthy.cli import VERBS
from tuneworthy.data.formats import FORMATS
from tuneworthy.evaluation.metrics import METRICS

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "tuneworthy"
BIN = Path(sys.executable).parent
HELP_SECONDS = 3.0
"""A second is promised; of the processor's time, which other tests beside it hardly lengthen."""

MODULE_LINES = 500
FUNCTION_LINES = 60
LONG_FUNCTIONS: dict[str, int] = {}
"""These may shrink and leave the list; nothing may join it."""

PUBLIC = """\
Checked: rows, metric, findings, ledger
Decision: verdict, arm, fine_tune, because, record, folder
Exported: folder, record
Fitted: arm, record, folder
Measured: arm, score, interval, n, failures, folder
Plan: arms, seconds_estimate, usd_estimate, smallest_detectable_difference_estimate
Retuned: because, gate_open, decision, record
TuneworthyError(what: str, *, where: str | None = None, hint: str | None = None)
check(project: Project | Path | str = ., *, tokens: bool = False) -> Checked
decide(project: Project | Path | str = ., *, listener: Listener | None = None, fresh: bool = False) -> Decision
evaluate(project: Project | Path | str, arm: str, *, listener: Listener | None = None) -> Measured
export(path: Path | str, arm: str, *, to: Path | str | None = None, format: str = adapter, precision: str | None = None, run: str | None = None, openvino: Path | str | None = None, listener: Listener | None = None) -> Exported
load(path: Path | str = ., **overrides: Any) -> Project
plan(project: Project | Path | str = ., *, listener: Listener | None = None) -> Plan
retune(path: Path | str = ., *, base: str, run: str | None = None, gate: str | None = None, listener: Listener | None = None) -> Retuned
train(project: Project | Path | str, arm: str, *, listener: Listener | None = None) -> Fitted
"""

TOOLS = {
    "ruff check": ["ruff", "check", "."],
    "ruff format": ["ruff", "format", "--check", "."],
    "mypy": ["mypy"],
    "import-linter": ["lint-imports"],
    "bandit": ["bandit", "-q", "-r", "src", "-c", "pyproject.toml"],
}


@pytest.mark.parametrize("tool", TOOLS)
def test_tool_passes(tool: str) -> None:
    program, *arguments = TOOLS[tool]
    run = subprocess.run(
        [str(BIN / program), *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, f"{tool} complains:\n{run.stdout}{run.stderr}"


HEAVY = {"torch", "transformers", "datasets", "lancedb", "numpy", "scipy", "fastapi", "sqlalchemy"}
"""Each takes a good part of the second within which help is promised."""


def children_seconds() -> float:
    """Processor time of all processes that this one has started and that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def run_and_heavy_modules(code: str) -> tuple[str, str]:
    """What a fresh interpreter prints, and which of the heavy modules it has loaded then."""
    check = f"import sys; print(*sorted({HEAVY} & set(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", f"{code}\n{check}"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    *printed, heavy = run.stdout.splitlines()
    return "\n".join(printed), heavy


def test_importing_loads_nothing_heavy() -> None:
    assert run_and_heavy_modules("import tuneworthy") == ("", "")


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_shows_an_example_at_once(verb: str) -> None:
    code = f"""
import sys
from tuneworthy.cli import main
sys.argv = ["tuneworthy", *{verb.split()}, "--help"]
try:
    main()
except SystemExit as ended:
    assert ended.code == 0
"""
    before = children_seconds()
    printed, heavy = run_and_heavy_modules(code)
    seconds = children_seconds() - before
    assert re.search(rf"Example:\s+tuneworthy\s+{verb}\b", printed) or not verb, printed
    assert heavy == ""
    assert seconds < HELP_SECONDS, f"tuneworthy {verb} --help took {seconds:.1f} s"


def test_there_are_seventeen_verbs() -> None:
    assert len(VERBS) == 17


def test_all_is_what_is_exported() -> None:
    exported = {
        name
        for name, value in vars(tw).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert exported == set(tw.__all__)
    assert tw.__all__ == sorted(tw.__all__)


def described(name: str) -> str:
    value = getattr(tw, name)
    if is_dataclass(value):
        return f"{name}: {', '.join(field.name for field in fields(value))}"
    signature = str(inspect.signature(value)).replace("'", "")
    return f"{name}{signature.removesuffix(' -> None')}"


def test_public_signatures_are_pinned() -> None:
    found = "".join(described(name) + "\n" for name in tw.__all__)
    assert found == PUBLIC, "scripts that we do not control call these: change them on purpose"


def test_modules_stay_small() -> None:
    sizes = {p: len(p.read_text("utf-8").splitlines()) for p in SRC.rglob("*.py")}
    assert len(sizes) > 50
    long = {p.relative_to(SRC).as_posix(): n for p, n in sizes.items() if n > MODULE_LINES}
    assert not long, f"more than {MODULE_LINES} lines: {long}"


def test_functions_stay_small() -> None:
    long = {}
    for path in SRC.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > FUNCTION_LINES:
                    long[f"{path.relative_to(SRC).as_posix()} {node.name}"] = lines
    grown = {name: n for name, n in long.items() if n > LONG_FUNCTIONS.get(name, FUNCTION_LINES)}
    assert not grown, f"asking to be split: {grown}"
    assert set(LONG_FUNCTIONS) <= set(long), "take what is short now out of LONG_FUNCTIONS"


def test_the_error_tree_is_whole_and_true() -> None:
    parents: list[str] = []
    drawn = {}
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"((?:[│ ]   )*(?:[├└]── )?)([A-Z]\w+) {2,}\S", line)
        if found:
            depth = len(found[1]) // 4
            parents = [*parents[:depth], found[2]]
            drawn[found[2]] = parents[depth - 1] if depth else "Exception"
    classes = {
        name: value.__base__.__name__
        for name, value in vars(errors).items()
        if isinstance(value, type) and value.__module__ == errors.__name__
    }
    assert drawn == classes
    assert set(errors.__all__) == set(classes)


@pytest.mark.parametrize(
    ("folder", "table", "size"),
    [
        ("arms", "ARMS", len(ARMS)),
        ("evaluation", "METRICS", len(METRICS)),
        ("data", "FORMATS", len(FORMATS)),
    ],
)
def test_contract_tests_run_over_the_table(folder: str, table: str, size: int) -> None:
    assert size >= 4
    using = [
        path.name
        for path in (ROOT / "tests" / folder).glob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Name) and node.id == table
    ]
    assert using, f"no test in tests/{folder}/ runs over {table}"


def requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    return [Requirement(line) for line in (*project["dependencies"], *extras)]


def test_every_dependency_has_a_floor_and_a_cap() -> None:
    found = requirements()
    assert len(found) > 20
    loose = [str(r) for r in found if {s.operator for s in r.specifier} != {">=", "<"}]
    assert not loose


def test_constraints_pin_every_dependency() -> None:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    pinned = {canonicalize_name(name): version for name, version in pins.items()}
    wrong = [
        str(requirement)
        for requirement in requirements()
        if not requirement.specifier.contains(pinned.get(canonicalize_name(requirement.name), "0"))
    ]
    assert not wrong, f"constraints.txt does not pin, or pins another version: {wrong}"


_MACHINE = re.compile(r"(?<![\w./-])/(?:tmp|work|root|home)/")
_REGISTRY = re.compile(
    r"pypi\.org|pythonhosted|npmjs|debian\.org|huggingface\.co|crates\.io|/simple/", re.IGNORECASE
)


def test_nothing_names_a_machine_or_a_registry_host() -> None:
    kinds = (".py", ".md", ".yaml", ".toml", ".txt", ".html", ".css", ".js")
    paths = [p for part in ("src", "docs") for p in (ROOT / part).rglob("*") if p.suffix in kinds]
    paths += [p for p in ROOT.iterdir() if p.suffix in kinds or p.name == "Makefile"]
    assert len(paths) > 100
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
        for path in paths
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if _MACHINE.search(line) or _REGISTRY.search(line)
    ]
    assert not found, "\n".join(found)

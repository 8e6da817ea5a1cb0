"""A model card: what an exported model is, where it comes from, and what it scored."""

from __future__ import annotations

from typing import Any

from tuneworthy.report import numbers

Export = dict[str, Any]
"""The content of `export.json`."""

_USE = {
    "adapter": "transformers with PEFT (`PeftModel.from_pretrained(base, folder)`), or vLLM with "
    "`--enable-lora`; the base is not in this folder.",
    "merged": "transformers or vLLM: a model of its own.",
    "gguf": "any runtime that reads GGUF.",
    "ollama": "`ollama create NAME -f Modelfile` in this folder.",
}


def card(export: Export) -> str:
    """README.md of an exported model."""
    made, measured = export["provenance"], export["measured"]
    base, data = made["base"], made["data"]
    lines = [
        f"# {export['task']}: {export['arm']} on {base['name']}",
        f"Made by Tuneworthy {made['packages']['tuneworthy']} from run `{made['run']}`.",
        "## What it is",
        _table(
            {
                "task": export["task"],
                "arm": export["arm"],
                "base": f"{base['name']}, sha256 `{base['sha256']}`",
                "licence of the base": base["licence"] or "not known",
                "format": f"{export['format']}, {export['precision']}",
                "rows": ", ".join(f"{count:,} {name}" for name, count in data["rows"].items()),
                "rows' sha256": f"`{data['sha256']}`",
                "test rows' sha256": f"`{data['test_sha256']}`",
            }
        ),
        "## What it scored",
        _score(measured),
        "## How to use it",
        f"With {_USE[export['format']]}",
        _needs(export["needs"]),
        "## How it was trained",
        _table(export["recipe"]["training"] or {}),
        "## How it was checked",
        "After it was written, it was loaded by its consumers; their greedy answers to dev rows "
        "were compared with those of the arm that was measured.",
        "\n".join(f"- {check['consumer']}: {check['said']}." for check in export["checks"]),
        *[f"Not checked: {text}." for text in export["not_checked"]],
        "## Where it was made",
        _table({**made["machine"], **{f"{k} (package)": v for k, v in made["packages"].items()}}),
        "## Files",
        _table({f"`{name}`": f"`{sha256}`" for name, sha256 in export["files"].items()}),
    ]
    return "\n\n".join(lines) + "\n"


def _table(pairs: dict[str, Any]) -> str:
    rows = [f"| {name} | {value} |" for name, value in pairs.items()]
    return "\n".join(["| | |", "|---|---|", *rows])


def _score(measured: dict[str, Any] | None) -> str:
    if measured is None:
        return "Not measured on the sealed rows."
    return (
        f"{numbers.score(measured['score'])} on {measured['n']} sealed test rows by the metric "
        f"{measured['metric']} (95 % interval {numbers.interval(measured['interval'])}). The "
        f"verdict of that run: {measured['verdict']}"
        + (f" {measured['adopted']}." if measured["adopted"] else ".")
    )


def _needs(needs: dict[str, Any]) -> str:
    """What stands in the prompts beside the row's own words, and is no part of the weights."""
    said = []
    if needs["system"]:
        said.append(f"Every prompt begins with this system turn:\n\n> {needs['system']}")
    if needs["examples"]:
        said.append(
            f"Every prompt carries {needs['examples']['k']} training rows as turns "
            f"({needs['examples']['select']}); without them it answers worse than was measured."
        )
    if needs["passages"]:
        said.append(
            f"Every prompt carries {needs['passages']} passages found in the documents; a runtime "
            "alone does not do that."
        )
    if needs["grammar"]:
        said.append("It was measured held to a grammar; the file does not hold it to one.")
    return "\n\n".join(said) or "The row's prompt alone goes in, as one user turn."

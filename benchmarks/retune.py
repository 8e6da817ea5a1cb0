"""`retune` from one real base to another, `report --verify`, and every export in its consumer.

The whole of the example home-commands on SmolLM2-135M-Instruct, then again on Gemma 3 270M, which
has another tokenizer and no chat template. What was done is kept below `.bench/`: started again, it
goes on.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import _common

import tuneworthy as tw
from tuneworthy import store
from tuneworthy.errors import TuneworthyError
from tuneworthy.examples import build
from tuneworthy.store import RunFolder
from tuneworthy.workflows import concluding, exporting, verifying

NEW_BASE = "gemma-3-270m"
PARTS = ("retune", "verify", "exports")
GATE = "no arm worse by more than 0.02"
EXPORTS = (
    ("adapter", None),
    ("merged", "bfloat16"),
    ("gguf", "float16"),
    ("gguf", "q8_0"),
    ("ollama", "q8_0"),
)
TAMPERED = {
    "a prediction": "arms/lora/predictions.jsonl",
    "a row": "rows.jsonl",
    "an adapter": "arms/lora/model/adapter_model.safetensors",
}
PACKAGES = ("torch", "transformers", "peft", "gguf", "tuneworthy")
Found = dict[str, Any]


class Talk:
    """Lines on stderr; of ticks one in ten seconds."""

    def __init__(self) -> None:
        self.spoke = 0.0

    def __call__(self, event: dict[str, Any] | str) -> None:
        now = time.monotonic()
        if isinstance(event, str):
            text = event
        elif event["kind"] == "tick" and now - self.spoke < _common.HEARTBEAT_SECONDS:
            return
        else:
            keys = ("arm", "text", "what", "phase", "done", "total", "why", "score", "dev_score")
            shown = " ".join(str(event[key]) for key in keys if event.get(key) is not None)
            text = f"{event['kind']}: {shown}"
        self.spoke = now
        print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


say = Talk()


def measured(folder: Path) -> tw.Decision:
    """The finished run on the old base, with the arm that is exported in it.

    Without the example's budget: a machine that others share would leave arms out.
    """
    project = tw.load(folder, budget="none")
    decision = tw.decide(project, listener=say)
    if not RunFolder(decision.folder).measured("lora").exists():
        say("lora was stopped by its forecast: measured all the same, for there to be an adapter")
        tw.evaluate(project, "lora", listener=say)
        decision = tw.decide(project, listener=say)
    return decision


@contextmanager
def one_byte_changed(path: Path) -> Iterator[None]:
    """A byte in the middle of a file is another one, and then itself again."""
    whole = path.read_bytes()
    place = len(whole) // 2
    while path.suffix == ".jsonl" and not chr(whole[place]).isalpha():
        place += 1  # a letter: what is no longer JSON would be found by anybody
    changed = bytearray(whole)
    changed[place] ^= 1
    try:
        path.write_bytes(bytes(changed))
        yield
    finally:
        path.write_bytes(whole)


def verification(folder: Path) -> Found:
    """What `report --verify` says of the run as it is, and after one byte was changed."""
    run, project = concluding.find_run(folder)
    began = time.monotonic()
    untouched = verifying.verify(run, project)
    found: Found = {
        "seconds": time.monotonic() - began,
        "checks": {check.what: check.state for check in untouched},
        "untouched_passes": not any(check.wrong for check in untouched),
    }
    for what, name in TAMPERED.items():
        with one_byte_changed(run.path / name):
            wrong = [t for check in verifying.verify(run, project) for t in check.wrong or ()]
        # Where the run lies is this machine's own affair.
        found[f"{what} changed"] = [t.replace(f"{run.path}/", "") for t in wrong]
    found["passes_again"] = not any(check.wrong for check in verifying.verify(run, project))
    return found


def exports(run: Path, openvino: Path | None, steps: Path) -> Found:
    """Every export of the run's LoRA, by format and precision; what was refused is tried again."""
    found: Found = {}
    for format_, precision in EXPORTS:
        name = f"{format_} {precision or ''}".strip()
        to = run.parent.parent / "exports" / f"{run.name}-{name.replace(' ', '-')}"
        try:
            found[name] = step(
                steps,
                f"export-{to.name}",
                partial(exported, run, to, format_, precision, openvino),
            )
        except TuneworthyError as error:
            found[name] = {"error": str(error)}
    return found


def exported(
    run: Path, to: Path, format_: str, precision: str | None, openvino: Path | None
) -> Found:
    """One export, and how far its consumers agree with the live arm."""
    exporting.export(
        run,
        "lora",
        to=to,
        format_=format_,
        precision=precision,
        openvino=openvino,
        listener=say,
    )
    record = store.read_json(to / "export.json")
    return {
        "megabytes": sum(p.stat().st_size for p in to.iterdir()) / 1e6,
        "checks": record["checks"],
        "not_checked": record["not_checked"],
    }


def comparison(record: Found) -> Found:
    """What is kept of retune.json: everything but the rows' texts."""
    kept = {key: value for key, value in record.items() if key != "rows"}
    for pair in (*kept["arms"], *kept["against_what_was_in_use"]):
        pair |= {key: len(pair[key]) for key in ("better", "worse")}
    return kept


def table_of_arms(found: Found) -> list[str]:
    """The comparison, for the screen and for RESULTS.md."""
    arms = [
        [
            arm["arm"],
            f"{arm['old_score']:.3f}",
            f"{arm['new_score']:.3f}",
            f"{arm['delta']['value']:+.3f}",
            "{:+.3f} to {:+.3f}".format(*arm["delta"]["interval"]),
            f"+{arm['better']}/-{arm['worse']}",
        ]
        for arm in found["arms"]
    ]
    header = ["arm", "old", "new", "difference", "95 % interval", "rows"]
    table = _common.show(f"home-commands again on {NEW_BASE}", header, arms)
    return [table, "\n".join(f"- {text}" for text in found["because"]) + "\n"]


def table_of_exports(base: str, found: Found) -> str:
    lines = [
        [name, f"{one.get('took_seconds', 0):.0f} s", _agreement(one)]
        for name, one in found.items()
    ]
    return _common.show(f"exports of LoRA on {base}", ["export", "took", "same answers"], lines)


def _agreement(one: Found) -> str:
    if "error" in one:
        return "refused"
    return ", ".join(f"{c['consumer']} {c['same']}/{c['rows']}" for c in one["checks"])


def least(found: Found) -> float:
    """The smallest share of answers that are the live arm's; 0 where an export was refused."""
    shares = [c["same"] / c["rows"] for one in found.values() for c in one.get("checks", ())]
    return 0.0 if any("error" in one for one in found.values()) else min(shares)


def step(folder: Path, name: str, work: Callable[[], Found]) -> Found:
    """A piece of work, unless it was done before."""
    path = folder / f"{name}.json"
    if not path.exists():
        say(f"{name}: begins")
        began = time.monotonic()
        store.write_json(path, {**work(), "took_seconds": time.monotonic() - began})
    done: Found = store.read_json(path)
    return done


def bench(
    project: Path, steps: Path, openvino: Path | None, parts: Sequence[str] = PARTS
) -> tuple[Found, list[str]]:
    """The workloads that were asked for, and their tables."""
    if not (project / "tuneworthy.yaml").exists():
        build("home-commands", project, say)
    old = measured(project)
    new = tw.retune(project, base=NEW_BASE, run=old.folder.name, gate=GATE, listener=say)
    workloads: Found = {}
    shown: list[str] = []
    if "retune" in parts:
        found = comparison(dict(new.record))
        found["old_spent"] = old.record["spent"]
        spent = found["spent"]["seconds"]
        workloads["retune"] = _common.workload(spent, {}, "seconds", lower_is_better=True, **found)
        shown += table_of_arms(found)
    if "verify" in parts:
        found = step(steps, "verify", lambda: verification(new.decision.folder))
        noticed = sum(bool(found[f"{what} changed"]) for what in TAMPERED)
        unit = f"of {len(TAMPERED)} changed bytes found"
        workloads["verify"] = _common.workload(noticed, {}, unit, **found)
        passes = "passes" if found["untouched_passes"] else "does not pass"
        shown.append(f"The run {passes} `report --verify`; {noticed} {unit}.\n")
    if "exports" in parts:
        for base, run in ((str(old.record["base"]["name"]), old), (NEW_BASE, new.decision)):
            found = exports(run.folder, openvino, steps)
            unit = "smallest share of the live arm's answers"
            workloads[f"exports {base}"] = _common.workload(least(found), {}, unit, exports=found)
            shown.append(table_of_exports(base, found))
    return workloads, shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", choices=PARTS, help="only this one")
    parser.add_argument("--project", type=Path, help="a folder with the example, or for it")
    parser.add_argument("--peer-python", type=Path, help="an interpreter with OpenVINO GenAI")
    options = parser.parse_args()
    folder = _common.workspace() / "retune"
    project = options.project or folder / "home-commands"
    parts = [options.workload] if options.workload else PARTS
    with _common.ending():
        python = _common.peer_python("openvino", options.peer_python, say)
        found, shown = bench(project, folder, python, parts)
        installed = {
            **_common.versions(PACKAGES),
            "openvino": _common.versions(["openvino", "openvino-genai"], python),
        }
        _common.record("retune", found, shown, installed)


if __name__ == "__main__":
    main()

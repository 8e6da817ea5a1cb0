"""A new base model: home-commands from SmolLM2-135M to Gemma-3-270M, verified and exported.

Everything as a user would type it: example, decide, retune, `report --verify`, one
changed byte at a time, exports. What is there already is taken up again. See docs/guides/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import _common
from _common import ContenderFailed, Progress, workspace

from tuneworthy import store
from tuneworthy.errors import TuneworthyError
from tuneworthy.store import RunFolder
from tuneworthy.workflows import exporting

EXAMPLE, OLD, NEW = "home-commands", "smollm2-135m-instruct", "gemma-3-270m"
GATE = "no arm worse by more than 0.02"
ARM = "lora"
EXPORTS: tuple[tuple[str, str], ...] = (
    ("adapter", "as-trained"),
    ("merged", "bfloat16"),
    ("gguf", "float16"),
    ("gguf", "q8_0"),
    ("ollama", "q8_0"),
)
READ_BY_OPENVINO = (OLD,)
"""Its reader of GGUF knows Llama, and no Gemma."""
TAMPERED = {
    "a prediction": "arms/lora/predictions.jsonl",
    "a row": "rows.jsonl",
    "an adapter": "arms/lora/model/adapter_model.safetensors",
}
OWN_PACKAGES = ("tuneworthy", "torch", "transformers", "peft", "gguf")
OPENVINO_PACKAGES = ("openvino-genai", "openvino", "openvino-tokenizers")
PLANNED = {"example": 30.0, "decide": 400.0, "retune": 1200.0, "verify": 60.0, "export": 90.0}


def flipped(path: Path) -> int:
    """Change one bit of the byte in the middle of a file; where that is."""
    content = bytearray(path.read_bytes())
    place = len(content) // 2
    content[place] ^= 1
    path.write_bytes(content)
    return place


def named(report: Mapping[str, Any], file: str) -> bool:
    """Whether a verification found something wrong and says in which file."""
    return any(file in text for check in report["checks"] for text in check["wrong"] or ())


class Bench:
    """One project, its run on the old base, and its run on the new one."""

    def __init__(self, options: argparse.Namespace, progress: Progress) -> None:
        self.progress = progress
        self.folder = workspace() / "retune"
        self.project = self.folder / EXAMPLE
        self.timings = self.folder / "seconds.json"
        self.openvino = _common.peer_python("openvino", options.peer_python, progress.say)
        self.found: dict[str, Any] = {}
        self.tables: list[str] = []

    def versions(self) -> dict[str, Any]:
        return {
            **_common.versions(OWN_PACKAGES),
            "OpenVINO's": _common.versions(OPENVINO_PACKAGES, self.openvino),
        }

    def everything(self) -> None:
        if not (self.project / "tuneworthy.yaml").exists():
            self._piece("example", ["example", EXAMPLE, str(self.project)])
        old = self._run_on(OLD)
        if old is None or not old.decision.exists():
            # The demo's budget of 12 minutes is for a machine that does nothing else.
            self._piece("decide", ["decide", str(self.project), "--set", "budget=none"])
            old = self._run_on(OLD)
        new = self._run_on(NEW)
        if new is None or not new.retune.exists():
            words = ["retune", str(self.project), "--base", NEW, "--gate", GATE]
            self._piece("retune", words, allowed=(0, 3))
            new = self._run_on(NEW)
        assert old and new
        self._comparison(new)
        for base, run in ((OLD, old), (NEW, new)):
            self._verified(base, run)
        for base, run in ((OLD, old), (NEW, new)):
            for format_, precision in EXPORTS:
                self._exported(base, run, format_, precision)
        self._table_of_exports()

    def _run_on(self, base: str) -> RunFolder | None:
        runs = [
            run
            for run in store.runs(self.project)
            if store.read_json(run.config)["base"]["name"] == base
        ]
        return runs[-1] if runs else None

    def _piece(self, name: str, words: Sequence[str], allowed: Sequence[int] = (0,)) -> None:
        """One verb of the command line; its seconds are kept for a benchmark that goes on later."""
        self.progress.begin(name)
        began = time.monotonic()
        command = [sys.executable, "-m", "tuneworthy", *words]
        code = subprocess.run(command, stdout=sys.stderr, check=False).returncode
        self._keep(name, time.monotonic() - began)
        self.progress.end()
        if code not in allowed:
            raise ContenderFailed(f"tuneworthy {words[0]} ended with code {code}")

    def _keep(self, name: str, seconds: float) -> None:
        known = self._seconds()
        store.write_json(self.timings, {**known, name: known.get(name, 0.0) + seconds})

    def _seconds(self) -> dict[str, float]:
        return store.read_json(self.timings) if self.timings.exists() else {}

    def _comparison(self, new: RunFolder) -> None:
        found = store.read_json(new.retune)
        self.found["retune"] = _common.workload(
            found["spent"]["seconds"],
            {},
            "seconds of everything again",
            lower_is_better=True,
            usd=found["spent"]["usd"],
            spent=found["spent"]["by"],
            decided_in_seconds=self._seconds().get("decide"),
            old=found["parent"],
            new=found["new"],
            because=found["because"],
            gate=found["gate"],
            missing=found["missing"],
            arms=[
                {**arm, "better": len(arm["better"]), "worse": len(arm["worse"])}
                for arm in found["arms"]
            ],
            against_what_was_in_use=[
                {**pair, "better": len(pair["better"]), "worse": len(pair["worse"])}
                for pair in found["against_what_was_in_use"]
            ],
        )
        rows = [
            [
                arm["arm"],
                f"{arm['old_score']:.3f}",
                f"{arm['new_score']:.3f}",
                f"{arm['delta']['value']:+.3f}" if arm["delta"] else "–",
                "{:+.3f} to {:+.3f}".format(*arm["delta"]["interval"]) if arm["delta"] else "–",
                f"{arm['delta']['p_holm']:.4f}" if arm["delta"] else "–",
                str(len(arm["better"])),
                str(len(arm["worse"])),
            ]
            for arm in found["arms"]
        ]
        header = ["arm", OLD, NEW, "difference", "95 % interval", "Holm p", "better", "worse"]
        title = f"retune: {EXAMPLE} on the same {found['arms'][0]['rows']} sealed rows"
        self.tables.append(_common.show(title, header, rows))
        text = "".join(f"- {sentence}\n" for sentence in found["because"])
        print(text)
        self.tables.append(text)

    def _verified(self, base: str, run: RunFolder) -> None:
        """A run as it is, then copies of it with one changed byte."""
        self.progress.begin(f"verify {base}")
        code, report = self._verify(run.path)
        changes = {}
        copy = run.path.with_name(f".changed-{run.path.name}")
        for what, file in TAMPERED.items():
            store.remove(copy)
            shutil.copytree(run.path, copy)
            place = flipped(copy / file)
            failed, found = self._verify(copy)
            changes[what] = {
                "file": file,
                "byte": place,
                "exit_code": failed,
                "named": named(found, file),
                "checks": [check["what"] for check in found["checks"] if check["wrong"]],
            }
        store.remove(copy)
        self.progress.end()
        noticed = sum(c["exit_code"] == 1 and c["named"] for c in changes.values())
        self.found[f"verify-{base}"] = _common.workload(
            noticed,
            {},
            f"of {len(changes)} changes of one byte found",
            untouched_exit_code=code,
            checks={check["what"]: check["state"] for check in report["checks"]},
            changes=changes,
        )
        text = (
            f"The run on {base} {'passes' if code == 0 else 'does not pass'} `report --verify`; of "
            f"{len(changes)} copies with one changed byte ({', '.join(changes)}), {noticed} were found."
        )
        print(text + "\n")
        self.tables.append(text + "\n")
        if code or noticed < len(changes):
            raise ContenderFailed(text, where=str(run.path))

    def _verify(self, folder: Path) -> tuple[int, dict[str, Any]]:
        command = [sys.executable, "-m", "tuneworthy", "report", "--verify", "--json", str(folder)]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if not run.stdout:
            raise ContenderFailed((run.stderr.strip().splitlines() or ["no word"])[-1])
        return run.returncode, json.loads(run.stdout)

    def _exported(self, base: str, run: RunFolder, format_: str, precision: str) -> None:
        name = f"{base}-{format_}-{precision}"
        target = self.folder / "exports" / name
        openvino = self.openvino if base in READ_BY_OPENVINO else None
        if not self._is_export_of(target, run):
            self.progress.begin(f"export {name}")
            began = time.monotonic()
            try:
                exporting.export(
                    self.project,
                    ARM,
                    to=target,
                    format_=format_,
                    precision=precision,
                    run=str(run.path),
                    openvino=openvino,
                    listener=self._listen,
                )
            except TuneworthyError as error:
                # One format that does not agree is a finding; the others are still to be seen.
                self.found[f"export-{name}"] = _common.workload(
                    0, {}, "of the answers are the live arm's", failed=str(error)
                )
                self.progress.say(f"error: {error}")
                return
            finally:
                self.progress.end()
            self._keep(f"export-{name}", time.monotonic() - began)
        record = store.read_json(target / "export.json")
        megabytes = sum(p.stat().st_size for p in target.iterdir()) / 2**20
        self.found[f"export-{name}"] = _common.workload(
            min(check["same"] for check in record["checks"]),
            {},
            f"of {record['checks'][0]['rows']} answers are the live arm's",
            consumers=record["checks"],
            not_checked=record["not_checked"],
            megabytes=megabytes,
            seconds=self._seconds().get(f"export-{name}"),
        )

    def _is_export_of(self, target: Path, run: RunFolder) -> bool:
        file = target / "export.json"
        return file.exists() and store.read_json(file)["provenance"]["run"] == run.path.name

    def _listen(self, event: dict[str, Any]) -> None:
        if event["kind"] == "note":
            self.progress.say(event["text"])
        elif event["kind"] == "tick":
            self.progress.beat()

    def _table_of_exports(self) -> None:
        rows = []
        for name, found in self.found.items():
            if not name.startswith("export-"):
                continue
            export = name.removeprefix("export-")
            if "failed" in found:
                rows.append([export, "–", "–", "–", found["failed"]])
            for check in found.get("consumers", ()):
                rows.append(
                    [
                        export,
                        f"{found['megabytes']:.0f}",
                        f"{check['same']} of {check['rows']}",
                        f"{check['worst_nats']:.3f}",
                        check["consumer"],
                    ]
                )
        header = ["export", "MB", "same answers", "worst nats", "loaded by"]
        self.tables.append(_common.show(f"export {ARM}, verified", header, rows))
        failed = [name for name, found in self.found.items() if "failed" in found]
        if failed:
            self.tables.append(f"Not exported: {', '.join(failed)}.\n")


def planned() -> dict[str, float]:
    """Pieces of work and a first guess of their seconds."""
    pieces = {name: PLANNED[name] for name in ("example", "decide", "retune")}
    for base, slower in ((OLD, 1.0), (NEW, 2.0)):
        pieces[f"verify {base}"] = slower * PLANNED["verify"]
        for format_, precision in EXPORTS:
            pieces[f"export {base}-{format_}-{precision}"] = slower * PLANNED["export"]
    return pieces


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--peer-python", type=Path, help="python of an environment with OpenVINO GenAI in it"
    )
    return parser.parse_args(arguments)


def main() -> None:
    progress = Progress(planned())
    try:
        bench = Bench(parsed(), progress)
        bench.everything()
        _common.record("retune", bench.found, bench.tables, bench.versions())
    except TuneworthyError as error:
        print(f"error: {error}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()

"""The seal on the test rows: their hash, and a log of every time they were looked at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tuneworthy.errors import DataError, StorageError
from tuneworthy.store import RunFolder, now, read_json, runs, sha256_json, write_json
from tuneworthy.types import Example

Opening = dict[str, Any]
"""`{"time", "arm", "reason", "run"}`; earlier ones also `results`: whether a score was seen."""


def content(row: Example) -> list[Any]:
    """What makes a row the row it is: its turns and its completion, as JSON."""
    return [[[turn.role, turn.content] for turn in row.prompt], row.completion]


def sha256_rows(rows: Sequence[Example]) -> str:
    """Hash of the rows' ids and contents; their order does not matter."""
    return sha256_json(sorted([row.id, sha256_json(content(row))] for row in rows))


class Seal:
    """`seal.json` of a run. The only way to the test rows of a measurement is `open`."""

    def __init__(self, path: Path) -> None:
        """Read an existing seal. Raises StorageError if there is none, or it is not whole."""
        self.path = path
        self._record = read_json(path)
        missing = {"sha256", "rows", "created", "openings", "earlier"} - set(self._record)
        if missing:
            raise StorageError(
                f"not a seal: {', '.join(sorted(missing))} missing",
                where=str(path),
                hint="tuneworthy decide starts a new run",
            )

    @classmethod
    def create(
        cls, path: Path, test_rows: Sequence[Example], earlier: Sequence[Opening] = ()
    ) -> Seal:
        """Seal the test rows. `earlier`: openings of the same rows in other runs."""
        write_json(
            path,
            {
                "sha256": sha256_rows(test_rows),
                "rows": len(test_rows),
                "created": now(),
                "openings": [],
                "earlier": list(earlier),
            },
        )
        return cls(path)

    @property
    def sha256(self) -> str:
        return self._record["sha256"]

    @property
    def openings(self) -> list[Opening]:
        """Every opening of this run, oldest first."""
        return list(self._record["openings"])

    @property
    def earlier(self) -> list[Opening]:
        """Every opening of the same test rows in earlier runs, oldest first."""
        return list(self._record["earlier"])

    @property
    def after_results(self) -> int:
        """How many earlier openings had shown a score before this run began."""
        return sum(opening["results"] for opening in self._record["earlier"])

    def open(self, arm: str, reason: str, rows: Sequence[Example]) -> Sequence[Example]:
        """The rows, once the opening is on disk. Raises DataError if they are not those sealed."""
        if sha256_rows(rows) != self.sha256:
            raise DataError(
                f"the {len(rows):,} test rows are not the {self._record['rows']:,} that were "
                f"sealed on {self._record['created']}",
                where=str(self.path),
                hint="put rows.jsonl back as it was, or start a new run: tuneworthy decide",
            )
        opening = {"time": now(), "arm": arm, "reason": reason, "run": self.path.parent.name}
        self._record["openings"].append(opening)
        write_json(self.path, self._record)
        return rows


def earlier_openings(project_folder: Path, sha256: str) -> list[Opening]:
    """Openings of the test rows with this hash in all runs of the project, oldest first.

    What a removed run had left in the seals of later ones is among them.
    """
    found: dict[tuple[str, str, str], Opening] = {}
    for run in runs(project_folder):
        if not run.seal.exists():
            continue
        seal = Seal(run.seal)
        if seal.sha256 != sha256:
            continue
        for opening in [*seal.earlier, *(_with_results(run, one) for one in seal.openings)]:
            key = (opening["run"], opening["arm"], opening["time"])
            seen = found.get(key)
            found[key] = opening if seen is None or opening["results"] else seen
    return sorted(found.values(), key=lambda opening: opening["time"])


def _with_results(run: RunFolder, opening: Opening) -> Opening:
    return {**opening, "results": run.measured(opening["arm"]).exists()}

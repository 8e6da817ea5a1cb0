from __future__ import annotations

import json
import sys
from pathlib import Path

from tuneworthy.cli import options


def traffic(project: options.ProjectArgument = Path()) -> None:
    """Rows of logged answers that were praised or corrected, as jsonl on stdout.

    Example: tuneworthy traffic demo/home-commands > more.jsonl
    """
    from tuneworthy.server.traffic import rows

    for row in rows(options.load(project).folder):
        sys.stdout.write(json.dumps(row, ensure_ascii=False) + "\n")

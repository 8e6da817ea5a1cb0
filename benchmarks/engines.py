"""The contract of engines for vLLM, in the environment that has it: tests, no figures."""

from __future__ import annotations

import os
import subprocess
import sys

from _common import OFFLINE, ROOT, peer_python


def main() -> int:
    python = peer_python("vllm", None, lambda text: print(text, file=sys.stderr))
    environment = {**os.environ, **OFFLINE, "PYTHONPATH": str(ROOT / "src")}
    # The others run in the project's own environment, with every other test.
    killed = "tests/engine/test_vllm.py::test_finished_rows_outlive_the_process"
    what = ["-k", "vllm", "tests/engine/contract", killed]
    tests = [python, "-m", "pytest", *what]
    return subprocess.run(tests, cwd=ROOT, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())

"""A worker as the product has it, slow enough to be killed in the middle, and quick to notice.

Every answer of the fake base takes five milliseconds; training of a real model, where a test has
one, writes a checkpoint after each step.
"""

from __future__ import annotations

import os
import time
from typing import Any

from tuneworthy.engine import fake
from tuneworthy.server.jobs import queue, telling, worker
from tuneworthy.workflows import measure

ANSWER_SECONDS = 0.005
REAL = "TESTS_TRAIN_A_REAL_MODEL"


def slow_down() -> None:
    answer = fake.FakeEngine._answer

    def slow(*arguments: Any) -> Any:
        time.sleep(ANSWER_SECONDS)
        return answer(*arguments)

    fake.FakeEngine._answer = slow  # type: ignore[method-assign]
    measure.FLUSH_SECONDS = 0.03
    worker.IDLE_SECONDS = telling.RENEW_SECONDS = 0.05
    queue.LEASE_SECONDS = 1.0
    if os.environ.get(REAL):
        from tuneworthy.engine import training  # and torch with it

        training.CHECKPOINT_SECONDS = training.LOG_SECONDS = 0.0


if __name__ == "__main__":
    slow_down()
    worker.main()

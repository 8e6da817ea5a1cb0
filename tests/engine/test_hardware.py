"""Which thread computes on how many cores."""

from __future__ import annotations

import threading

import pytest
import torch

from tuneworthy.engine import hardware


def test_work_apart_has_all_cores_and_tells_of_its_failure() -> None:
    def work() -> tuple[int, str]:
        return torch.get_num_threads(), threading.current_thread().name

    cores, name = hardware.apart(work)
    assert cores == hardware.CORES and name != threading.current_thread().name
    assert name not in [thread.name for thread in threading.enumerate()], "its thread has ended"
    with pytest.raises(ZeroDivisionError):
        hardware.apart(lambda: 1 // 0)


def test_a_thread_that_computes_alone_takes_nothing_from_those_to_come() -> None:
    found: list[int] = []

    def alone() -> None:
        hardware.compute_alone()
        found.append(torch.get_num_threads())

    for work in (alone, lambda: found.append(torch.get_num_threads())):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert found == [1, hardware.CORES]

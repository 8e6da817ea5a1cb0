"""Which thread computes on how many cores, and what products leave in memory."""

from __future__ import annotations

import subprocess
import sys
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


OF_MANY_SHAPES = """
import ctypes
from tuneworthy.engine import hardware
import torch

class Heap(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
        "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]

about = ctypes.CDLL(None).mallinfo2
about.restype = Heap

def after(widths):
    for width in widths:
        torch.ones(90, 3, 64).bfloat16() @ torch.ones(90, 64, width).bfloat16()
    return about().uordblks + about().hblkhd

kept = max(hardware.PROGRAMS, hardware.DESCRIPTIONS)
full = after(range(100, 100 + kept))
print((after(range(100 + kept, 300 + kept)) - full) / 2**20)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the heap of glibc")
def test_products_of_ever_new_shapes_do_not_fill_the_memory() -> None:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("no oneDNN in this build, whose programs this is about")
    done = subprocess.run(
        [sys.executable, "-c", OF_MANY_SHAPES], capture_output=True, text=True, check=True
    )
    # 200 shapes more; each would be half a megabyte.
    assert float(done.stdout) < 20

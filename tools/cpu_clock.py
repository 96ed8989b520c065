"""A command of pad-fast by the clock of the process: ``python tools/cpu_clock.py plan mine.yaml``.

Method:

Where a plan and a run measure time, they get CPU seconds in place of those that pass, so that the
two can be compared while other work uses the machine. Give OMP_NUM_THREADS=1: the seconds of
several threads are added up, and threads that wait for one another use some.
"""

from __future__ import annotations

import sys
import time
import types

from pad_fast import cli
from pad_fast.pipeline import costs
from pad_fast.plan import machine, training_trial, trials


def use_cpu_seconds() -> None:
    """Replace the clock of the modules that measure."""
    names = {**vars(time), "perf_counter": time.process_time, "monotonic": time.process_time}
    clock = types.SimpleNamespace(**names)
    for module in (costs, machine, training_trial, trials):
        module.time = clock  # type: ignore[attr-defined]


if __name__ == "__main__":
    use_cpu_seconds()
    sys.exit(cli.main(sys.argv[1:]))

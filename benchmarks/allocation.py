"""What a train step spends on memory that it frees and takes again.

    python -m benchmarks.allocation
    python -m benchmarks.allocation --model t5-s4

Times the SFT step and the online round of `benchmarks.speed` on one core in two
processes that take turns: one with glibc's defaults, one after
`experiments.cli.keep_freed_memory`, as every stage of a run begins. Prints Markdown
rows: process CPU time, system time in it, and minor page faults of a call. Linux only.
"""

import dataclasses
import os
import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, Literal

import numpy as np
import tyro

from benchmarks import speed
from experiments.cli import keep_freed_memory

WORKLOADS = ("SFT step", "online round")


@dataclass(frozen=True)
class Config:
    """What to time."""

    model: Literal["s4", "llama-s4", "t5-s4"] = "s4"
    repeats: int = 8
    """Turns of each process."""


def main(config: Config) -> None:
    """Prints a row for each workload and process."""
    core = sorted(os.sched_getaffinity(0))[-1:]
    print(
        "| work | freed memory | CPU ms | system ms | faults |\n|---|---|---|---|---|"
    )
    spawn = get_context("spawn")
    with (
        ProcessPoolExecutor(1, spawn, begin, (config.model, core, False)) as default,
        ProcessPoolExecutor(1, spawn, begin, (config.model, core, True)) as kept,
    ):
        processes = {"given back (default)": default, "kept": kept}
        for name in WORKLOADS:
            rows: dict[str, list[Any]] = {process: [] for process in processes}
            for _ in range(config.repeats):
                for process, pool in processes.items():
                    rows[process].append(pool.submit(measure, name).result())
            for process, measured in rows.items():
                cpu, system, faults = np.median(measured, axis=0)
                print(
                    f"| {name} | {process} | {1e3 * cpu:.0f} | {1e3 * system:.0f} "
                    f"| {faults:,.0f} |"
                )


_work: dict[str, Callable[[], Any]] = {}


def begin(model: str, core: list[int], keep: bool) -> None:
    """Sets a process up and runs everything once, which compiles it."""
    os.sched_setaffinity(0, core)
    if keep and not keep_freed_memory():
        raise RuntimeError("this system has no mallopt: there is nothing to measure")
    import jax

    from jaxqr import models

    config = dataclasses.replace(speed.SIZES[model], eos_token_id=speed.END)
    module = models.build(config)
    params = models.init(module, jax.random.key(0))
    data = speed.inputs(module)
    for name, (work, _) in speed.workloads(module, params, data).items():
        if name in WORKLOADS:
            _work[name] = work
            work()


def measure(name: str) -> tuple[float, float, int]:
    """CPU seconds, system seconds and minor page faults of one call."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    _work[name]()
    after = resource.getrusage(resource.RUSAGE_SELF)
    user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    return user + system, system, after.ru_minflt - before.ru_minflt


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))

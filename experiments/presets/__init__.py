"""Runs by name: each file here is one, with every setting that is not a default.

A new file `my_run.py` with a `RUN` is the preset `my-run` of every command.
"""

import importlib
import pkgutil

from experiments.config import Run

PRESETS: dict[str, Run] = {
    module.name.replace("_", "-"): importlib.import_module(
        f"{__name__}.{module.name}"
    ).RUN
    for module in pkgutil.iter_modules(__path__)
}

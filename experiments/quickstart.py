"""The main job, small: `python -m experiments.pipeline quickstart` by a shorter name.

    python -m experiments.quickstart

The synthetic shop, a 1.6 M-parameter teacher, a 0.6 M-parameter student. CPU.
"""

from experiments.layout import launch
from experiments.pipeline import PRESETS, main

if __name__ == "__main__":
    launch(main, {"quickstart": PRESETS["quickstart"]}, __doc__)

"""The main job, small: `python -m experiments.pipeline quickstart` by a shorter name.

    python -m experiments.quickstart

The synthetic shop, a 1.6 M-parameter teacher, a 0.6 M-parameter student; about ten
minutes on two CPU cores, from nothing to `runs/quickstart/report.html`.
"""

from experiments.cli import launch
from experiments.pipeline import CONFIGS, main

if __name__ == "__main__":
    launch(main, {"quickstart": CONFIGS["quickstart"]}, __doc__)

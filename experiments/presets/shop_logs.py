"""The quickstart's shop, whose shoppers leave logs that the rewriter learns from.

    python -m experiments.pipeline shop-logs

Two CPU cores, about ten minutes. The judge is logged clicks, additions and purchases,
with position bias taken out; simulated shoppers have half of the weight, and answer
alone for lists that the logs do not know.
"""

from dataclasses import replace

from experiments.config import LogsConfig, SystemConfig, Visits
from experiments.presets.quickstart import RUN as QUICKSTART

RUN = replace(
    QUICKSTART,
    visits=Visits(),
    online=replace(
        QUICKSTART.online,
        system=SystemConfig(k=10, judge="logged", logs=LogsConfig(weight=0.5)),
    ),
)

"""One module per stage: `python -m experiments.NAME PRESET [--overrides]`."""

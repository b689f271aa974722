"""The page of an adversarial run: do hard synthetic queries make a better classifier?

`schema` declares its `summary.json`, which `python -m experiments.adversarial PRESET`
writes; `verdict`, `figures` and `page` are made from it and from nothing else.
"""

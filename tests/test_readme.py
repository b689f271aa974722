"""The README's code runs as it stands there, and its tree names what is there."""

import re
from pathlib import Path

import tiny

from jaxqr.lm import LM

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_code_runs(tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 3
    # What the quickstart would have left there.
    monkeypatch.chdir(tmp_path)
    lm = LM(tiny.GPT2, tiny.params(), tiny.tokenizer())
    lm.save("runs/quickstart/online/model")
    names = {}
    exec("\n".join(blocks), names)  # one after the other, as a reader types them
    assert names["loss"].shape == ()
    assert names["beams"].tokens.shape == (2, 10, 16)


def test_the_tree_is_the_real_one():
    """One line per file of experiments, per module of jaxqr, and none more."""
    tree = re.search(r"## What is where\n\n```\n(.*?)```", README, re.DOTALL)[1]
    listed = {"": set(), "jaxqr/": set(), "experiments/": set()}
    folder = ""
    for line in tree.splitlines():
        name = line.split()[0]
        if line.startswith("  "):
            listed[folder].add(name.rstrip("/"))
        else:
            folder = name
    for folder in ("jaxqr/", "experiments/"):
        there = {
            path.name
            for path in (ROOT / folder).iterdir()
            if path.suffix == ".py" or (path / "__init__.py").exists()
        }
        assert listed[folder] == there - {"__init__.py"}

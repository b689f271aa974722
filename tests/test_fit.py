"""One stage: what is trained, what is exported, what is given away."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny

from jaxqr import models
from jaxqr.lm import LM
from jaxqr.train import steps
from jaxqr.train.fit import fit

ADAPTED = models.build(dataclasses.replace(tiny.GPT2.config, lora_rank=2))
STATS = {"max_source": 16, "max_target": 16}


def fresh(model=tiny.GPT2):
    params = tiny.params()
    if model is ADAPTED:
        lora = models.init(model, jax.random.key(0))["lora"]
        params = {**params, "lora": tiny.scrambled(lora, 0.2)}
    return LM(model, params, tiny.tokenizer())


def train(lm, folder, num_steps=4, **options):
    settings = {"optimizer": tiny.ADAM, "evaluate_every": 2, "log_every": 1}
    step = steps.sft_step
    fit(lm, step, tiny.sft_batches(), folder=folder, num_steps=num_steps,
        **settings | options)  # fmt: skip


def nll(lm):
    return lm.token_stats(tiny.PAIRS[:8], **STATS).nll


@pytest.mark.parametrize("model", [tiny.GPT2, ADAPTED], ids=["whole", "adapters"])
def test_the_model_of_the_best_score_is_exported_and_merged(model, tmp_path):
    scores, seen = {0: 1.0, 2: 3.0, 4: 2.0}, {}

    def evaluate(lm, step):
        assert lm.params.keys() == fresh(model).params.keys()
        seen[step] = nll(lm)
        return {"s": scores[step]}

    train(fresh(model), tmp_path, evaluate=evaluate, score="s", keep_start=True)
    assert list(seen) == [0, 2, 4]
    assert np.abs(seen[2] - seen[4]).max() > 1e-2
    exported = LM.load(tmp_path / "model")
    assert exported.params.keys() == {"params"}  # adapters are merged
    np.testing.assert_allclose(nll(exported), seen[2], rtol=1e-4, atol=1e-4)


def test_without_a_score_the_last_model_is_exported(tmp_path):
    seen = {}

    def evaluate(lm, step):
        seen[step] = nll(lm)
        return {"s": float(step == 2)}

    train(fresh(), tmp_path, evaluate=evaluate)
    np.testing.assert_allclose(nll(LM.load(tmp_path / "model")), seen[4], rtol=1e-5)


def test_evaluations_that_all_fail_export_the_last_model(tmp_path):
    def evaluate(lm, step):
        raise ConnectionError("search engine is down")

    train(fresh(), tmp_path / "failing", evaluate=evaluate, score="s")
    train(fresh(), tmp_path / "plain")
    failing, plain = (LM.load(tmp_path / x / "model") for x in ("failing", "plain"))
    tiny.assert_same_bits(failing.params, plain.params)


@pytest.mark.parametrize("keep", [True, False])
def test_the_start_is_kept_where_it_is_needed(keep, tmp_path):
    """As a reference; and a base is never given away."""
    start = fresh()
    train(start, tmp_path / "whole", 1, keep_start=keep)
    gone = [x.is_deleted() for x in jax.tree.leaves(start.params)]
    assert not any(gone) if keep else all(gone)
    start = fresh(ADAPTED)
    train(start, tmp_path / "adapters", 1, keep_start=keep)
    assert not any(x.is_deleted() for x in jax.tree.leaves(start.params["params"]))


def test_only_adapters_are_trained(tmp_path):
    """With their base; another base is refused when the stage goes on."""
    start = fresh(ADAPTED)
    before = jax.device_get(start.params["params"])
    train(start, tmp_path, 2, keep_start=True)
    tiny.assert_same_bits(jax.device_get(start.params["params"]), before)
    other = fresh(ADAPTED)
    table = other.params["params"]["wte"]["embedding"]
    other.params["params"]["wte"]["embedding"] = table.at[3, 3].add(1e-5)
    with pytest.raises(ValueError, match="another frozen model"):
        train(other, tmp_path, 4)
    train(fresh(ADAPTED), tmp_path, 4)

"""Adapters in training: they alone move, are optimised, donated to no one and saved."""

import dataclasses
import json

import golden
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from jaxqr import losses, models, vocab
from jaxqr.train import loop, sharding, steps
from jaxqr.train import state as train_state
from jaxqr.train.checkpoint import Checkpoints
from jaxqr.types import Preferences

RANK, ALPHA = 2, 6.0
MODEL = models.build(
    dataclasses.replace(tiny.T5.config, lora_rank=RANK, lora_alpha=ALPHA)
)
ADAM = optax.adam(1e-2)
STEP = steps.compile_step(steps.sft_step, model=MODEL, optimizer=ADAM)
BATCH = tiny.pairs(tiny.rows(8))


def params(seed=0):
    """A trained base and adapters that do something."""
    drawn = models.init(MODEL, jax.random.key(seed))
    return tiny.scrambled(drawn, 0.2, seed)


def start(given, optimizer=ADAM):
    return train_state.create(given, optimizer, jax.random.key(0))


def pointers(tree):
    return [
        shard.data.unsafe_buffer_pointer()
        for x in jax.tree.leaves(tree)
        for shard in x.addressable_shards
    ]


def test_the_gradient_is_that_of_the_merged_map(tmp_path):
    """dL/dA = s (dL/dW) B^T and dL/dB = s A^T (dL/dW), W being the merged map."""
    given = params()
    step = steps.compile_step(steps.sft_step, model=MODEL, optimizer=tiny.SGD)
    after, _ = step(start(given, tiny.SGD), BATCH)
    models.save_pretrained(tmp_path, MODEL, given)
    merged, whole = models.load_pretrained(tmp_path)

    def loss(whole):
        features, tokens, mask = merged.apply(whole, BATCH, method="completion")
        return losses.nll(vocab.token_logps(features, tokens), mask)[0]

    gradient = jax.jit(jax.grad(loss))(whole)["params"]
    for path in (("encoder_0", "attn", "q"), ("decoder_1", "mlp", "wi_0")):
        adapter, moved, kernel = given["lora"], after.params["lora"], gradient
        for name in path:
            adapter, moved, kernel = adapter[name], moved[name], kernel[name]
        scale, kernel = ALPHA / RANK, kernel["kernel"]
        expected = {
            "a": scale * kernel @ adapter["b"].T,
            "b": scale * adapter["a"].T @ kernel,
        }
        for name, value in expected.items():
            np.testing.assert_allclose(
                adapter[name] - moved[name], value, rtol=1e-3, atol=1e-4
            )


@pytest.mark.parametrize("fsdp", [None, 2])
def test_the_rest_is_neither_moved_nor_copied_nor_given_away(fsdp, monkeypatch):
    """So it may be the reference too."""
    monkeypatch.setattr(sharding, "SMALLEST", 64)
    given, batch = params(), BATCH
    if fsdp:
        given = sharding.shard_params(given, sharding.make_mesh(fsdp))
        batch = sharding.shard_batch(BATCH, given)
    base, adapters = pointers(given["params"]), jax.device_get(given["lora"])
    state = start(given)
    step = STEP
    if fsdp:
        step = steps.compile_step(
            steps.sft_step, like=state, model=MODEL, optimizer=ADAM
        )
    assert pointers(state.params["params"]) == base
    for _ in range(2):
        state, metrics = step(state, batch)
    assert np.isfinite(metrics["loss"])
    assert pointers(state.params["params"]) == base
    assert step._cache_size() == 1
    moved = jax.tree.map(
        lambda a, b: np.abs(a - b).max(), state.params["lora"], adapters
    )
    assert all(x > 1e-3 for x in jax.tree.leaves(moved))
    tiny.assert_same_bits(jax.device_get(given["lora"]), adapters)  # still there
    # The optimiser remembers adapters only.
    moments = {x.shape for x in jax.tree.leaves(state.opt_state[0].mu)}
    assert moments == {x.shape for x in jax.tree.leaves(adapters)}
    assert all(RANK in shape for shape in moments)


def test_a_checkpoint_holds_the_adapters_alone(tmp_path):
    def batches():
        return tiny.sft_batches()

    def train(num_steps, folder):
        state = start(params())
        return loop.run(STEP, state, batches(), num_steps=num_steps, folder=folder)

    whole = train(4, tmp_path / "whole")
    train(2, tmp_path / "broken")
    (host,) = (tmp_path / "broken" / "checkpoints").rglob("host/metadata")
    names = json.loads(host.read_text())["arrays"]
    assert {name.split(".")[1] for name in names if name.startswith("p")} == {"lora"}
    resumed = train(4, tmp_path / "broken")
    tiny.assert_same_bits(resumed, whole)
    # Its base must be the one that it began with, to the last bit.
    checkpoints = Checkpoints(tmp_path / "whole" / "checkpoints")
    like, changed = params(), params()
    table = changed["params"]["shared"]["embedding"]
    swapped = table.at[jnp.array([3, 5])].set(table[jnp.array([5, 3])])
    changed["params"]["shared"]["embedding"] = swapped
    assert checkpoints.restore(start(like)) is not None
    spread = sharding.shard_params(like, sharding.make_mesh(2))
    assert checkpoints.restore(start(spread)) is not None
    with pytest.raises(ValueError, match="adapters of a model that has other weights"):
        checkpoints.restore(start(changed))
    checkpoints.close()
    # Without adapters it is another run.
    checkpoints = Checkpoints(tmp_path / "whole" / "checkpoints")
    with pytest.raises(ValueError, match=r"lora.*expected None"):
        checkpoints.restore(start({"params": params()["params"]}))
    checkpoints.close()


def test_preferences_begin_at_the_reference():
    """The start is its own reference, whose base the policy shares."""
    given = params()
    batch = Preferences(
        *BATCH, BATCH.target[::-1], BATCH.target_mask[::-1], np.ones(8, np.float32)
    )
    step = steps.compile_step(steps.dpo_step, model=MODEL, optimizer=ADAM)
    state, first = step(start(given), batch, given)
    np.testing.assert_allclose(first["loss"], np.log(2), rtol=1e-5)
    for _ in range(4):
        state, metrics = step(state, batch, given)
    assert metrics["loss"] < 0.9 * first["loss"]


def test_adapters_learn_what_the_base_has_not_seen():
    """On held-out pairs, from a base that has seen the first half of the colours."""
    optimizer = train_state.adamw(1e-2, 150, schedule="constant")
    base = {"params": models.init(MODEL, jax.random.key(0))["params"]}
    plain = steps.compile_step(steps.sft_step, model=tiny.T5, optimizer=tiny.ADAM)
    batches = tiny.sft_batches()
    state = train_state.create(base, tiny.ADAM, jax.random.key(0))
    for _ in range(20):
        state, _ = plain(state, batches.next(state))
    base = tiny.copy_of(state.params)
    given = {**base, "lora": models.init(MODEL, jax.random.key(1))["lora"]}
    step = steps.compile_step(steps.sft_step, model=MODEL, optimizer=optimizer)
    adapted = loop.run(step, start(given, optimizer), batches, num_steps=150).params
    rows = tiny.tokenizer().pairs(tiny.HELD_OUT, max_source=16, max_target=16)
    held_out = tiny.pairs(rows, 17, 17)

    def nll(given):
        features, tokens, mask = golden.apply(
            MODEL, given, held_out, method="completion"
        )
        return float(losses.nll(vocab.token_logps(features, tokens), mask)[0])

    before, after = nll(given), nll(adapted)
    assert after < 0.7 * before
    assert (jnp.stack(jax.tree.leaves(jax.tree.map(
        lambda a, b: (a == b).all(), adapted["params"], base["params"]
    )))).all()  # fmt: skip

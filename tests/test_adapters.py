"""Adapters in training: they alone move, are optimized and saved; the base stays."""

import dataclasses
import json

import golden
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from jaxqr import losses, models, sharding, vocab
from jaxqr.train import loop, steps
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
    """The state of the adapters, and the base."""
    trained, base = models.partition(given)
    return train_state.create(trained, optimizer, jax.random.key(0)), base


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
    state, base = start(given, tiny.SGD)
    after, _ = step(state, BATCH, base)
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
    adapters = jax.device_get(given["lora"])
    state, base = start(given)
    assert (state.params.keys(), base.keys()) == ({"lora"}, {"params"})
    before = pointers(base)
    step = STEP
    if fsdp:
        step = steps.compile_step(
            steps.sft_step, like=state, model=MODEL, optimizer=ADAM
        )
    for _ in range(2):
        state, metrics = step(state, batch, base)
    assert np.isfinite(metrics["loss"])
    assert state.params.keys() == {"lora"}
    assert pointers(base) == before  # neither copied nor given away
    assert step._cache_size() == 1
    moved = jax.tree.map(
        lambda a, b: np.abs(a - b).max(), state.params["lora"], adapters
    )
    assert all(x > 1e-3 for x in jax.tree.leaves(moved))
    tiny.assert_same_bits(jax.device_get(given["lora"]), adapters)  # still there
    # The optimizer remembers adapters only.
    moments = {x.shape for x in jax.tree.leaves(state.opt_state[0].mu)}
    assert moments == {x.shape for x in jax.tree.leaves(adapters)}
    assert all(RANK in shape for shape in moments)


def test_a_checkpoint_holds_the_adapters_alone(tmp_path):
    def train(num_steps, folder):
        state, base = start(params())
        return loop.run(
            STEP,
            state,
            tiny.sft_batches(),
            num_steps=num_steps,
            folder=folder,
            frozen=(base,),
        )

    whole = train(4, tmp_path / "whole")
    train(2, tmp_path / "broken")
    (host,) = (tmp_path / "broken" / "checkpoints").rglob("host/metadata")
    names = json.loads(host.read_text())["arrays"]
    assert {name.split(".")[1] for name in names if name.startswith("p")} == {"lora"}
    resumed = train(4, tmp_path / "broken")
    tiny.assert_same_bits(resumed, whole)
    # Its base must be the one that it began with, to the last bit.

    def restored(given, like=None):
        state, base = start(given)
        folder = tmp_path / "whole" / "checkpoints"
        checkpoints = Checkpoints(folder, frozen=(base,))
        try:
            return checkpoints.restore(like or state)
        finally:
            checkpoints.close()

    changed = params()
    table = changed["params"]["shared"]["embedding"]
    swapped = table.at[jnp.array([3, 5])].set(table[jnp.array([5, 3])])
    changed["params"]["shared"]["embedding"] = swapped
    assert restored(params()) is not None
    spread = sharding.shard_params(params(), sharding.make_mesh(2))
    assert restored(spread) is not None
    with pytest.raises(ValueError, match=r"another frozen model \(base, teacher or"):
        restored(changed)
    # Without adapters it is another run.
    whole_model = train_state.create(
        {"params": params()["params"]}, ADAM, jax.random.key(0)
    )
    with pytest.raises(ValueError, match=r"lora.*expected None"):
        restored(params(), like=whole_model)


def test_preferences_begin_at_the_reference():
    """The start is its own reference, whose base the policy shares."""
    given = params()
    batch = Preferences(
        *BATCH, BATCH.target[::-1], BATCH.target_mask[::-1], np.ones(8, np.float32)
    )
    step = steps.compile_step(steps.dpo_step, model=MODEL, optimizer=ADAM)
    state, base = start(given)
    state, first = step(state, batch, base, given)
    np.testing.assert_allclose(first["loss"], np.log(2), rtol=1e-5)
    for _ in range(4):
        state, metrics = step(state, batch, base, given)
    assert metrics["loss"] < 0.9 * first["loss"]


def test_adapters_learn_what_the_base_has_not_seen():
    """On held-out pairs, from a base that has seen the first half of the colours."""
    optimizer = train_state.adamw(1e-2, 150, schedule="constant")
    base = {"params": models.init(MODEL, jax.random.key(0))["params"]}
    plain = steps.compile_step(steps.sft_step, model=tiny.T5, optimizer=tiny.ADAM)
    batches = tiny.sft_batches()
    state = train_state.create(base, tiny.ADAM, jax.random.key(0))
    for _ in range(20):
        state, _ = plain(state, batches.next(state), {})
    base = tiny.copy_of(state.params)
    given = {**base, "lora": models.init(MODEL, jax.random.key(1))["lora"]}
    step = steps.compile_step(steps.sft_step, model=MODEL, optimizer=optimizer)
    state, frozen = start(given, optimizer)
    state = loop.run(step, state, batches, num_steps=150, frozen=(frozen,))
    adapted = models.combine(state.params, frozen)
    rows = tiny.tokenizer().pairs(tiny.HELD_OUT, max_source=16, max_target=16)
    held_out = tiny.pairs(rows, 17, 17)

    def nll(given):
        features, tokens, mask = golden.apply(
            MODEL, given, held_out, method="completion"
        )
        return float(losses.nll(vocab.token_logps(features, tokens), mask)[0])

    before, after = nll(given), nll(adapted)
    assert after < 0.7 * before
    tiny.assert_same_bits(adapted["params"], base["params"])

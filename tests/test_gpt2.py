"""GPT-2's fresh weights and sizes; the rest is in `test_families`, `test_parity`."""

import jax
import numpy as np
import pytest

from jaxqr import models


def test_fresh_parameters_differ_by_key():
    model = models.build(models.preset("gpt2-tiny", vocab_size=64))
    one, same, other = (models.init(model, jax.random.key(k)) for k in (0, 0, 1))
    kernel = ("params", "h_0", "attn_proj", "kernel")

    def at(params):
        for name in kernel:
            params = params[name]
        return params

    assert (at(one) == at(same)).all()
    assert (at(one) != at(other)).any()
    # Scaled down by the square root of the 2 * 2 additions to the residual stream.
    np.testing.assert_allclose(at(one).std(), 0.08 / 2, rtol=0.05)


def test_token_ids_of_a_smaller_vocabulary():
    """An id that a preset's smaller vocabulary lacks is none, or is refused."""
    for name, lost in (
        ("gpt2-tiny", {"bos_token_id", "eos_token_id"}),
        ("llama-3.2-1b", {"bos_token_id", "eos_token_id"}),
        ("llama-tiny", set()),
        ("t5-tiny", set()),
        ("bert-tiny", set()),
    ):
        whole, small = models.preset(name), models.preset(name, vocab_size=1000)
        for field, value in vars(small).items():
            if field != "vocab_size":
                assert value == (None if field in lost else getattr(whole, field))
    config = models.preset("gpt2", vocab_size=1000, eos_token_id=(999, 3))
    assert (config.bos_token_id, config.eos_token_id) == (None, (999, 3))
    for ids in (1000, -1, (3, 1000)):
        with pytest.raises(ValueError, match=r"eos_token_id=.* of 1000 tokens: .* 999"):
            models.preset("gpt2", vocab_size=1000, eos_token_id=ids)
    with pytest.raises(ValueError, match="decoder_start_token_id=64 is not in"):
        models.preset("t5-tiny", vocab_size=64, decoder_start_token_id=64)


def test_configs_that_cannot_be():
    with pytest.raises(ValueError, match="128 does not split into 3 heads"):
        models.preset("gpt2-tiny", n_head=3)
    with pytest.raises(ValueError, match=r"no preset 'gpt5'.*gpt2-tiny"):
        models.preset("gpt5")
    with pytest.raises(ValueError, match=r"no model for builtins\.str: .*GPT2Config"):
        models.build("gpt2")

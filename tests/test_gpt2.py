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


def test_configs_that_cannot_be():
    with pytest.raises(ValueError, match="128 does not split into 3 heads"):
        models.preset("gpt2-tiny", n_head=3)
    with pytest.raises(ValueError, match=r"no preset 'gpt5'.*gpt2-tiny"):
        models.preset("gpt5")
    with pytest.raises(ValueError, match=r"no model for builtins\.str: .*GPT2Config"):
        models.build("gpt2")

"""One tiny model, one tokenizer and one toy task for all tests of training."""

from functools import cache, partial
from typing import Any

import golden
import jax
import numpy as np
import optax
from scipy.special import log_softmax

from jaxqr import models
from jaxqr.data.pipeline import pair_batches
from jaxqr.data.tokenize import Row, Tokenizer, pad_right, train_tokenizer
from jaxqr.lm import LM
from jaxqr.train import state, steps
from jaxqr.types import Pairs, Params, TrainState

VOCAB, EOS = 300, 0

GPT2 = models.build(
    models.preset(
        "gpt2-tiny", vocab_size=VOCAB, n_positions=64, n_embd=32, n_head=2,
        bos_token_id=EOS, eos_token_id=EOS,
    )
)  # fmt: skip
BERT = models.build(
    models.preset(
        "bert-tiny", vocab_size=VOCAB, hidden_size=32, intermediate_size=64,
        max_position_embeddings=64, num_labels=4,
    )
)  # fmt: skip

LLAMA = models.build(
    models.preset(
        "llama-tiny", vocab_size=VOCAB, hidden_size=32, intermediate_size=64,
        max_position_embeddings=64, bos_token_id=EOS, eos_token_id=EOS,
        tie_word_embeddings=False,
        # Most positions of the tests are beyond the original context.
        rope_scaling=models.RopeScaling(original_max_position_embeddings=4),
    )
)  # fmt: skip
T5 = models.build(
    models.preset(
        "t5-tiny", vocab_size=VOCAB, d_model=32, d_kv=8, d_ff=48,
        pad_token_id=EOS, eos_token_id=EOS, decoder_start_token_id=EOS,
        relative_attention_num_buckets=8, relative_attention_max_distance=16,
    )
)  # fmt: skip

SGD = optax.sgd(1.0)
"""A step's gradient is the parameters before it minus those after it."""

# The toy task: the shop calls things by other names than its customers do.
COLOURS = ("red", "blue", "green", "black", "white", "pink", "brown", "grey")
RENAMED = {
    "shoe": "trainer",
    "sofa": "couch",
    "lamp": "light",
    "bag": "tote",
    "rug": "carpet",
    "mug": "cup",
}
PAIRS = [
    (f"{colour} {thing}", f"{name} in {colour}")
    for colour in COLOURS
    for thing, name in RENAMED.items()
]
HELD_OUT = PAIRS[::5]  # every colour and every thing is in the others
TRAIN = [pair for pair in PAIRS if pair not in HELD_OUT]


@cache
def tokenizer() -> Tokenizer:
    made = train_tokenizer([text for pair in PAIRS for text in pair], VOCAB)
    assert (made.vocab_size, made.eos) == (VOCAB, EOS)
    return made


def params(seed: int = 0, scale: float = 4.0, model: Any = GPT2) -> Params:
    """Fresh parameters, scaled up so that no distribution is near to uniform."""
    drawn = models.init(model, jax.random.key(seed))
    if model is not GPT2:  # their fresh weights are larger
        return scrambled(drawn, 0.25, seed)
    return jax.tree.map(lambda x: scale * x if x.ndim > 1 else x, drawn)


def scrambled(params: Params, std: float, seed: int = 0) -> Params:
    """Random numbers of the same shapes, those of vectors about 1."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jax.numpy.asarray(
            rng.normal(float(x.ndim == 1), std, x.shape), np.float32
        ),
        params,
    )


def lm(seed: int = 0, model: Any = GPT2) -> LM:
    return LM(model, params(seed, model=model), tokenizer())


def start(
    optimizer: optax.GradientTransformation = SGD, seed: int = 0, **options: Any
) -> TrainState:
    return state.create(params(seed, **options), optimizer, jax.random.key(seed))


def state_of(seed: int, trained: Params | None = None) -> TrainState:
    """A state that nothing trains: parameters and a key."""
    trained = params(seed) if trained is None else trained
    return TrainState(trained, (), jax.random.key(seed), jax.numpy.int32(0))


def rows(count: int, *, source: int = 5, target: int = 6, seed: int = 0) -> list[Row]:
    """Random rows of at most these lengths; one has both, one a target of one."""
    rng = np.random.default_rng(seed)
    lengths = [(source, target), (1, 1)] + [
        (int(rng.integers(1, source + 1)), int(rng.integers(1, target + 1)))
        for _ in range(count - 2)
    ]
    return [
        Row(*(rng.integers(0, VOCAB, n).tolist() for n in pair))
        for pair in lengths[:count]
    ]


def pairs(
    rows: list[Row], source: int = 7, target: int = 8, *, garbage: int = 0
) -> Pairs:
    """The rows, padded to these widths with random ids; no row is full."""
    rng = np.random.default_rng(garbage)
    batch = Pairs(
        rng.integers(0, VOCAB, (len(rows), source)).astype(np.int32),
        np.zeros((len(rows), source), bool),
        rng.integers(0, VOCAB, (len(rows), target)).astype(np.int32),
        np.zeros((len(rows), target), bool),
    )
    for i, row in enumerate(rows):
        left, right = slice(source - len(row.source), None), slice(len(row.target))
        batch.source[i, left], batch.source_mask[i, left] = row.source, True
        batch.target[i, right], batch.target_mask[i, right] = row.target, True
    return batch


def next_logps(params: Params, rows: list[Row], width: int = 11) -> list[np.ndarray]:
    """Per row `[T, V]`, in float64: the distribution of every target token.

    The definition: each row begins in column 0 and has nothing before it, and all
    logits exist.
    """
    tokens, mask = pad_right([r.source + r.target for r in rows], width, EOS)
    features = golden.apply(GPT2, params, tokens, mask)
    logits = np.float64(features.hidden) @ np.float64(features.unembed).T
    return [
        log_softmax(table[len(r.source) - 1 : len(r.source + r.target) - 1], axis=-1)
        for table, r in zip(logits, rows, strict=True)
    ]


def token_logps(params: Params, rows: list[Row], width: int = 11) -> list[np.ndarray]:
    """Per row `[T]`, in float64: log-probabilities of the target tokens."""
    return [
        table[np.arange(len(r.target)), r.target]
        for table, r in zip(next_logps(params, rows, width), rows, strict=True)
    ]


def assert_same_bits(one: Any, other: Any) -> None:
    """Trees of arrays and keys are equal to the last bit."""
    one, other = jax.tree.flatten(one), jax.tree.flatten(other)
    assert one[1] == other[1]
    for a, b in zip(one[0], other[0], strict=True):
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


ADAM = state.adamw(3e-3, 200)


@cache
def compiled(step: Any, optimizer: Any = ADAM, model: Any = GPT2, **static: Any) -> Any:
    """The step on a tiny model, compiled once for all tests of a session."""
    return steps.compile_step(step, model=model, optimizer=optimizer, **static)


def sft_batches(seed: int = 0, batch_size: int = 8) -> Any:
    rows = tokenizer().pairs(TRAIN, max_source=16, max_target=16)
    return pair_batches(rows, batch_size=batch_size, seed=seed, fill=EOS)


def copy_of(tree: Any) -> Any:
    """The same numbers in buffers of their own, to be donated."""
    return jax.tree.map(partial(jax.numpy.array, copy=True), tree)


def bert_folder(folder: Any) -> Any:
    """The folder, with `BERT` and the tokenizer as transformers would save them."""
    tokenizer().save(folder)
    models.save_pretrained(folder, BERT, params(model=BERT))
    return folder

"""A language model in one piece: the model, its parameters and its tokenizer.

from jaxqr.lm import LM

LM.load("PATH/TO/FOLDER").rewrite(["cheap red sofa"])
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key

from jaxqr import decode, models, sharding, vocab
from jaxqr.data import prompts
from jaxqr.data.pipeline import BUCKETS, bucket, collate_pairs, in_order
from jaxqr.data.prompts import PromptTemplate, Source
from jaxqr.data.tokenize import Tokenizer, pad_prompts
from jaxqr.decode import Sampling
from jaxqr.decode.ends import end_tokens
from jaxqr.models.config import Dtype, Remat
from jaxqr.models.value import init_value, load_value, save_value
from jaxqr.types import AnyArray, Pairs, Params, PromptBatch

GREEDY = Sampling(temperature=0.0)


class Rewrite(NamedTuple):
    """One text that a language model wrote."""

    text: str
    logp: float
    """Log-probability of its tokens under the model, in nats, at temperature 1."""
    finished: bool
    """Whether the model ended it; otherwise it was cut at the maximum length."""


class TokenStats(NamedTuple):
    """Sums over each row's target tokens, in nats; divide by `tokens` for means."""

    tokens: Float[AnyArray, " B"]
    nll: Float[AnyArray, " B"]
    entropy: Float[AnyArray, " B"]
    reverse_kl: Float[AnyArray, " B"]
    """KL(model || teacher); 0 without a teacher."""


class LM(NamedTuple):
    """A language model, its parameters and its tokenizer.

    Attributes:
        model: a flax module of `jaxqr.models`; holds no arrays.
        params: what `model.apply` takes first.
        tokenizer: with the prompt that the model knows its sources by.
    """

    model: Any
    params: Params
    tokenizer: Tokenizer

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        dtype: Dtype = "float32",
        mesh: Mesh | None = None,
        prompt: str | PromptTemplate | None = None,
        instruction: str | None = None,
        remat: Remat = "none",
        lora_rank: int = 0,
        lora_alpha: float = 16.0,
        value_head: bool = False,
        layers: int | None = None,
        seed: int = 0,
    ) -> "LM":
        """Reads a Hugging Face folder of a GPT-2, Llama or T5; downloads nothing.

        Ids that the tokenizer does not have are never predicted.

        Args:
            folder: config.json, safetensors and tokenizer files.
            dtype: of the computation; parameters are float32.
            mesh: each device reads its own part of the parameters; None: all of them on
                the first device.
            prompt: how a source is put to the model, a kind ("completion", "chat",
                "prefix") or a template; None: what the folder's `prompt.json` says;
                without one "prefix" for an encoder-decoder, "chat" for a tokenizer with
                a chat template, else "completion".
            instruction: the chat's text above the query, or the prefix; None: a default
                of the kind.
            remat: what the backward pass computes again instead of storing it.
            lora_rank: above 0, adapters of this rank are drawn; they alone are trained.
            lora_alpha: adapters are scaled by `lora_alpha / lora_rank`.
            value_head: adds a value head for PPO: the one that `save` wrote into the
                folder, or else a fresh one.
            layers: keep so many of each stack's, evenly spaced, the first and the last
                among them; None: all.
            seed: decides fresh adapters.

        Raises:
            FileNotFoundError: no such folder, or a file is missing in it.
            ValueError: the folder is not of a language model, or model and tokenizer do
                not belong together.
        """
        folder = Path(folder).expanduser()
        if not folder.is_dir():
            raise FileNotFoundError(
                f"{folder} is not a folder: give the path of a Hugging Face folder, "
                "with config.json, safetensors and tokenizer files in it"
            )
        # All that can be wrong is checked before gigabytes are read.
        config, tokenizer = models.load_config(folder), Tokenizer.load(folder)
        _check_belongs(folder, config, tokenizer)
        tokenizer = _with_prompt(
            tokenizer, folder, models.build(config), prompt, instruction
        )
        multiple = 1
        if mesh is not None and (shards := mesh.shape["fsdp"]) > 1:
            multiple = math.lcm(128, shards)
        model, params = models.load_pretrained(
            folder,
            dtype=dtype,
            key=jax.random.key(seed),
            place=None if mesh is None else partial(sharding.placement, mesh=mesh),
            num_tokens=tokenizer.vocab_size,
            vocab_multiple=multiple,
            remat=remat,
            lora_rank=lora_rank,
            lora_alpha=lora_alpha,
            layers=layers,
        )
        if value_head:
            params = load_value(folder, init_value(model, params))
        return cls(model, params, tokenizer)

    def save(self, folder: str | Path) -> None:
        """Writes a folder that `load` and transformers read, adapters merged.

        A value head goes into a file of its own.
        """
        folder = Path(folder).expanduser()
        self.tokenizer.save(folder)
        models.save_pretrained(folder, self.model, self.params)
        save_value(folder, self.params)

    def partition(self) -> tuple[Params, Params]:
        """What is trained of the parameters, and the frozen base."""
        return models.partition(self.params)

    def with_params(self, trained: Params) -> "LM":
        """The same model with other trained parameters, such as `state.params`."""
        return self._replace(params={**self.params, **trained})

    def rewrite(
        self,
        queries: Sequence[Source],
        *,
        n: int = 1,
        sampling: Sampling | None = None,
        key: Key[Array, ""] | None = None,
        batch_size: int = 64,
    ) -> list[list[Rewrite]]:
        """`n` rewrites of every query.

        Queries go through in batches of one shape, at most `batch_size` rewrites each
        but one query at least.

        Args:
            queries: texts; or, for a prompt with several slots, a text for each.
            n: rewrites per query.
            sampling: how to draw; None: greedy for `n=1`, samples at temperature 1 for
                more.
            key: equal keys give equal samples; None: `jax.random.key(0)`.
            batch_size: rewrites at a time.

        Returns:
            A list for each query, in order.
        """
        if sampling is None:
            sampling = GREEDY if n == 1 else Sampling()
        key = jax.random.key(0) if key is None else key
        batches = self._prompts(queries, sampling.max_source, max(1, batch_size // n))
        rewrites: list[list[Rewrite]] = []
        for index, (batch, real) in enumerate(batches):
            drawn = jax.device_get(
                decode.generate(
                    self.model,
                    self.params,
                    batch,
                    jax.random.fold_in(key, index),
                    n=n,
                    **sampling.arguments(),
                )
            )
            rows = slice(n * real)
            logps = np.sum(drawn.logps[rows], axis=1, where=drawn.mask[rows])
            flat = self._rewrites(drawn.tokens[rows], drawn.mask[rows], logps)
            rewrites += [flat[i : i + n] for i in range(0, len(flat), n)]
        return rewrites

    def beams(
        self,
        queries: Sequence[Source],
        n: int = 10,
        num_groups: int = 1,
        diversity_penalty: float = 0.0,
        *,
        length_penalty: float = 1.0,
        max_source: int = 32,
        max_new_tokens: int = 24,
        batch_size: int = 64,
    ) -> list[list[Rewrite]]:
        """The `n` best rewrites of every query that beam search finds, best first.

        The arguments from `num_groups` on are those of `decode.beam_search`.
        """
        batches = self._prompts(queries, max_source, max(1, batch_size // n))
        rewrites = []
        for batch, real in batches:
            found = jax.device_get(
                decode.beam_search(
                    self.model,
                    self.params,
                    batch,
                    max_new_tokens=max_new_tokens,
                    num_beams=n,
                    num_groups=num_groups,
                    diversity_penalty=diversity_penalty,
                    length_penalty=length_penalty,
                )
            )
            rows = zip(found.tokens, found.mask, found.logps, strict=True)
            rewrites += [self._rewrites(*row) for row in rows][:real]
        return rewrites

    def token_stats(
        self,
        pairs: Sequence[tuple[Source, str]],
        *,
        teacher: "LM | None" = None,
        max_source: int = 32,
        max_target: int = 24,
        batch_size: int = 64,
    ) -> TokenStats:
        """Likelihood of given targets, and the divergence from a teacher there.

        Args:
            pairs: (source, target) texts.
            teacher: a model with the same tokenizer.
            max_source: tokens of a prompt.
            max_target: tokens of a target, the end of text included.
            batch_size: pairs at a time.

        Returns:
            Columns with one entry per pair, as numpy.
        """
        rows = self.tokenizer.pairs(pairs, max_source=max_source, max_target=max_target)
        collate = partial(collate_pairs, fill=self.tokenizer.eos)
        parts = []
        for batch, real in in_order(rows, collate, batch_size=batch_size):
            stats = _token_stats(
                self.model,
                self.params,
                sharding.shard_batch(batch, self.params),
                teacher and teacher.model,
                teacher and teacher.params,
            )
            parts.append(jax.tree.map(lambda x, real=real: np.asarray(x)[:real], stats))
        empty = TokenStats(*[np.zeros(0, np.float32)] * len(TokenStats._fields))
        return jax.tree.map(lambda *columns: np.concatenate(columns), empty, *parts)

    def _prompts(
        self, sources: Sequence[Source], max_source: int, most: int
    ) -> Iterator[tuple[PromptBatch, int]]:
        """Prompts of one shape on the model's devices, each with its real rows."""
        tokens = self.tokenizer.source(sources, max_source)
        collate: Callable[..., PromptBatch] = partial(
            pad_prompts, width=bucket(max_source), fill=self.tokenizer.eos
        )
        # Few prompts make a small batch, of one of a few sizes; many make full ones.
        at_once = min(most, bucket(min(most, max(1, len(tokens)), BUCKETS[-1])))
        for batch, real in in_order(tokens, collate, batch_size=at_once):
            yield sharding.shard_batch(batch, self.params), real

    def _rewrites(
        self, tokens: np.ndarray, mask: np.ndarray, logps: np.ndarray
    ) -> list[Rewrite]:
        ends = end_tokens(self.model, self.tokenizer.vocab_size)
        ended = np.any(np.isin(tokens, ends) & mask, axis=1)
        texts = self.tokenizer.decode(tokens, mask)
        columns = texts, logps.tolist(), ended.tolist()
        return [Rewrite(*row) for row in zip(*columns, strict=True)]


def fresh_model(name: str, tokenizer: Tokenizer, **fields: Any) -> Any:
    """A module of a preset's size for a tokenizer's ids, to be trained from scratch.

    Args:
        name: a preset of `jaxqr.models`.
        tokenizer: says which ids there are.
        fields: further fields of the config.

    Raises:
        ValueError: no such preset; or adapters, which need pretrained weights.
    """
    if fields.get("lora_rank"):
        raise ValueError(
            f"lora_rank={fields['lora_rank']}: adapters need a pretrained model, and "
            f"{name} starts at random; give a folder with --init, or lora-rank 0"
        )
    known = vars(models.preset(name)).keys()
    fields |= {
        "vocab_size": tokenizer.vocab_size,
        "bos_token_id": tokenizer.bos,
        "eos_token_id": tokenizer.eos,
        "pad_token_id": tokenizer.eos,
        "decoder_start_token_id": tokenizer.bos,
        "n_positions": 256,
    }
    return models.build(
        models.preset(name, **{k: v for k, v in fields.items() if k in known})
    )


@partial(jax.jit, static_argnums=(0, 3))
def _token_stats(
    model: Any, params: Params, batch: Pairs, teacher: Any, teacher_params: Params
) -> TokenStats:
    features, tokens, mask = model.apply(params, batch, method="completion")
    logps = vocab.token_logps(features, tokens)

    def row_sum(values):
        return jnp.sum(values * mask, axis=1)

    reverse_kl = jnp.zeros_like(logps)
    if teacher is not None:
        theirs, _, _ = teacher.apply(teacher_params, batch, method="completion")
        reverse_kl = vocab.divergence(features, theirs, kind="reverse_kl")
    return TokenStats(
        tokens=jnp.sum(mask, axis=1, dtype=jnp.float32),
        nll=-row_sum(logps),
        entropy=row_sum(vocab.entropy(features)),
        reverse_kl=row_sum(reverse_kl),
    )


def _check_belongs(folder: Path, config: Any, tokenizer: Tokenizer) -> None:
    if not isinstance(config, models.LanguageModelConfig) or config.num_labels:
        kind = type(config).__name__.removesuffix("Config")
        what = "classifier" if config.num_labels else "encoder"
        raise ValueError(
            f"{folder} holds a {kind} {what}, which writes no text: give the folder of "
            "a GPT-2, Llama or T5 language model"
        )
    tokenizer.check_fits(vars(config)["vocab_size"], folder)
    ends = vars(config)["eos_token_id"]
    if tokenizer.eos not in (ends if isinstance(ends, tuple) else (ends,)):
        raise ValueError(
            f"{folder}: config.json ends texts with token {ends}, the tokenizer with "
            f"{tokenizer.eos}; generation would never stop. Set both to the same "
            "eos_token_id"
        )


def _with_prompt(
    tokenizer: Tokenizer,
    folder: Path,
    model: Any,
    prompt: str | PromptTemplate | None,
    instruction: str | None,
) -> Tokenizer:
    """The tokenizer with the prompt that was asked for, or that suits the model."""
    saved = (folder / prompts.FILE).exists()
    if prompt is None and (instruction is not None or not saved):
        chat = "chat" if tokenizer.has_chat_template else "completion"
        prompt = "prefix" if model.encoder_decoder else chat
    if prompt is None:
        return tokenizer
    return tokenizer.with_prompt(prompt, instruction)

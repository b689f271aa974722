"""Text to token ids and back: where text meets arrays on the way in.

A `Tokenizer` is a Hugging Face tokenizer folder, given or trained here, plus the one
layout in which the package writes texts:

- a prompt is `BOS query newline`, padded on the left; too long a query loses its
  beginning, never the newline;
- a target is `text EOS`, padded on the right; one too long is cut and has no EOS,
  because it is not finished;
- plain text is a target after the prompt `BOS`;
- an encoder reads `[CLS] query [SEP] product [SEP]`, or whatever the folder's own
  pair template says.

Token ids say nothing about padding: BOS, EOS and padding may share an id, the masks
made here are the only truth.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxqr.types import Pairs, Prompts

END_OF_TEXT = "<|endoftext|>"


class Row(NamedTuple):
    """One tokenised pair, unpadded."""

    source: list[int]
    target: list[int]


class EncoderRow(NamedTuple):
    """One tokenised text pair for an encoder, unpadded, with its class."""

    tokens: list[int]
    segments: list[int]
    label: int


class Tokenizer:
    """A Hugging Face fast tokenizer that knows the layout above.

    Attributes:
        vocab_size: number of ids, the special ones included.
        bos: id that opens a prompt; the end-of-text id where the folder has none.
        eos: id that closes a target.
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self.vocab_size: int = len(tokenizer)
        eos = tokenizer.eos_token_id
        # BERT-like folders have no end of text; they are only used as encoders.
        self.eos: int = tokenizer.sep_token_id if eos is None else eos
        bos = tokenizer.bos_token_id
        self.bos: int = self.eos if bos is None else bos
        # What stands before and after a query; the newline is the last id, because
        # a tokenizer that prefixes a space makes a token of it.
        self._before = [self.bos]
        self._after = self.encode(["\n"])[0][-1:]

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """Reads a Hugging Face tokenizer folder; nothing is downloaded.

        Raises:
            FileNotFoundError: no tokenizer files in `folder`.
        """
        folder = Path(folder)
        names = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model")
        if not any((folder / name).exists() for name in names):
            raise FileNotFoundError(
                f"{folder} holds none of {', '.join(names)}: give a Hugging Face "
                "tokenizer folder, or leave it out to train one on the data"
            )
        tokenizer = _transformers().AutoTokenizer
        return cls(tokenizer.from_pretrained(folder, local_files_only=True))

    def save(self, folder: str | Path) -> None:
        """Writes a folder that `load` and transformers' `AutoTokenizer` read."""
        self._tokenizer.save_pretrained(folder)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids without special tokens, even where a text spells one out."""
        if not texts:
            return []
        encoded = self._tokenizer(
            list(texts), add_special_tokens=False, split_special_tokens=True
        )
        return encoded["input_ids"]

    def decode(self, tokens: np.ndarray, mask: np.ndarray) -> list[str]:
        """The texts of `[B, T]` targets: counted tokens, without special ones."""
        rows = [list(map(int, t[m])) for t, m in zip(tokens, mask, strict=True)]
        if not rows:
            return []
        texts = self._tokenizer.batch_decode(
            rows, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return [" ".join(text.split()) for text in texts]

    def source(self, queries: Sequence[str], max_tokens: int) -> list[list[int]]:
        """Prompts as id lists of at most `max_tokens`, the end of the query kept.

        Raises:
            ValueError: the tokenizer drops newlines, as BERT's does.
        """
        if not self._after:
            raise ValueError(
                "the tokenizer has no token for a newline, which ends a prompt: it "
                "serves encoders only; give a language model's tokenizer folder"
            )
        room = max(0, max_tokens - len(self._before) - len(self._after))
        return [
            [*self._before, *ids[max(0, len(ids) - room) :], *self._after]
            for ids in self.encode(queries)
        ]

    def target(self, texts: Sequence[str], max_tokens: int) -> list[list[int]]:
        """Targets as id lists of at most `max_tokens`, EOS last if all of it fits."""
        return [[*ids, self.eos][:max_tokens] for ids in self.encode(texts)]

    def pairs(
        self, pairs: Iterable[tuple[str, str]], *, max_source: int, max_target: int
    ) -> list[Row]:
        """Rows of (query, rewrite) pairs."""
        queries, rewrites = (
            zip(*pairs, strict=True) if (pairs := [*pairs]) else ((), ())
        )
        return [
            Row(s, t)
            for s, t in zip(
                self.source(queries, max_source),
                self.target(rewrites, max_target),
                strict=True,
            )
        ]

    def plain(self, texts: Sequence[str], *, max_target: int) -> list[Row]:
        """Rows of plain text: BOS, then the text."""
        return [Row([self.bos], ids) for ids in self.target(texts, max_target)]

    def encoder(
        self,
        first: Sequence[str],
        second: Sequence[str],
        *,
        max_tokens: int,
        labels: Sequence[int] | None = None,
    ) -> list[EncoderRow]:
        """Rows of text pairs for an encoder; the longer text is cut if need be."""
        if not first:
            return []
        encoded = self._tokenizer(
            list(first),
            list(second),
            truncation="longest_first",
            max_length=max_tokens,
            return_token_type_ids=True,
            split_special_tokens=True,
        )
        labels = [0] * len(first) if labels is None else labels
        return [
            EncoderRow(*row)
            for row in zip(
                encoded["input_ids"], encoded["token_type_ids"], labels, strict=True
            )
        ]


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE of `vocab_size` ids trained on `texts`.

    Any string can be encoded: the 256 bytes are in the vocabulary. The end-of-text
    token is BOS, EOS and padding at once, as in GPT-2; [CLS] and [SEP] serve
    encoders. Training is deterministic.

    Raises:
        ValueError: `vocab_size` does not hold the bytes and the special tokens.
    """
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers

    special = [END_OF_TEXT, "[CLS]", "[SEP]"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocab_size < len(alphabet) + len(special):
        raise ValueError(
            f"vocab_size={vocab_size} is too small: {len(alphabet)} bytes and "
            f"{len(special)} special tokens need {len(alphabet) + len(special)}"
        )
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=special,
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    ids = {token: backend.token_to_id(token) for token in special}
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    return Tokenizer(
        _transformers().PreTrainedTokenizerFast(
            tokenizer_object=backend,
            bos_token=END_OF_TEXT,
            eos_token=END_OF_TEXT,
            pad_token=END_OF_TEXT,
            cls_token="[CLS]",
            sep_token="[SEP]",
        )
    )


def _transformers() -> Any:
    """The library, imported late and without its notice that torch is missing."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    import transformers

    return transformers


def pad_left(rows: Sequence[Sequence[int]], width: int, fill: int):
    """`[len(rows), width]` ids and mask; every row ends in the last column."""
    return _pad(rows, width, fill, left=True)


def pad_right(rows: Sequence[Sequence[int]], width: int, fill: int):
    """`[len(rows), width]` ids and mask; every row begins in the first column."""
    return _pad(rows, width, fill, left=False)


def _pad(rows, width, fill, *, left):
    tokens = np.full((len(rows), width), fill, np.int32)
    mask = np.zeros((len(rows), width), bool)
    for i, row in enumerate(rows):
        columns = slice(width - len(row), width) if left else slice(0, len(row))
        tokens[i, columns], mask[i, columns] = row, True
    return tokens, mask


def pad_pairs(rows: Sequence[Row], source_width: int, target_width: int, fill: int):
    """`Pairs` of the given widths."""
    return Pairs(
        *pad_left([row.source for row in rows], source_width, fill),
        *pad_right([row.target for row in rows], target_width, fill),
    )


def pad_prompts(sources: Sequence[list[int]], width: int, fill: int) -> Prompts:
    """`Prompts` of the given width."""
    return Prompts(*pad_left(sources, width, fill))

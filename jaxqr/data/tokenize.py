"""Text to token ids and back: where text meets arrays on the way in.

A `Tokenizer` is a Hugging Face tokenizer folder, given or trained here, plus the
layout in which the package writes texts:

- a prompt is a query between the texts of a `PromptTemplate`, such as `BOS query
  newline`, padded on the left; too long a query loses its beginning, the rest of the prompt
  loses nothing;
- a target is `text EOS`, padded on the right; one too long is cut and has no EOS,
  because it is not finished;
- plain text is a target after the prompt `BOS`;
- an encoder reads `[CLS] query [SEP] product [SEP]`, or whatever the folder's own
  pair template says; if that puts nothing between the two, a newline or EOS does.

Token ids say nothing about padding: BOS, EOS and padding may share an id, the masks
made here are the only truth.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxqr.data import compare, prompts
from jaxqr.data.encoding import Encode
from jaxqr.data.prompts import PromptTemplate
from jaxqr.types import Pairs, PromptBatch

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
        prompt: the texts around a query; None if nothing says which.
    """

    def __init__(self, tokenizer: Any, prompt: PromptTemplate | None = None):
        """Wraps a transformers tokenizer.

        Without a prompt, a tokenizer that has a newline writes completions.

        Raises:
            ValueError: the prompt needs a newline or an EOS that is not there.
        """
        self._tokenizer = tokenizer
        self.vocab_size: int = len(tokenizer)
        eos = tokenizer.eos_token_id
        # BERT-like folders have no end of text; they are only used as encoders.
        self._encoder_only = eos is None
        self.eos: int = tokenizer.sep_token_id if eos is None else eos
        bos = tokenizer.bos_token_id
        self.bos: int = self.eos if bos is None else bos
        self._encode = Encode(tokenizer)
        (newline,) = self._encode.behind("a", ["\n"])
        decoded = tokenizer.decode(newline, clean_up_tokenization_spaces=False)
        # BERT drops a newline, T5 makes a blank or an unknown token of it.
        self._newline = newline if decoded == "\n" else []
        if prompt is None and self._newline:
            prompt = prompts.make(tokenizer, "completion")
        self.prompt = prompt
        if prompt:
            lacking = {"completion": not self._newline, "prefix": self._encoder_only}
            if lacking.get(prompt.kind):
                raise self._no_prompt()
            self._layout = prompts.tokenize_template(
                prompt, self._encode, self.bos, self.eos
            )

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """Reads a Hugging Face tokenizer folder; nothing is downloaded.

        Its prompt is the one `save` has written there.

        Raises:
            FileNotFoundError: no tokenizer files in `folder`.
            ValueError: its `prompt.json` is broken, or not for this tokenizer.
        """
        folder = Path(folder)
        names = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model")
        if not any((folder / name).exists() for name in names):
            raise FileNotFoundError(
                f"{folder} holds none of {', '.join(names)}: give a Hugging Face "
                "tokenizer folder, or leave it out to train one on the data"
            )
        prompt = PromptTemplate.load(folder)
        tokenizer = _transformers().AutoTokenizer
        tokenizer = tokenizer.from_pretrained(folder, local_files_only=True)
        try:
            return cls(tokenizer, prompt)
        except ValueError as error:
            raise ValueError(f"{folder / prompts.FILE}: {error}") from None

    def save(self, folder: str | Path) -> None:
        """Writes a folder that `load` and transformers' `AutoTokenizer` read."""
        self._tokenizer.save_pretrained(folder)
        if self.prompt:
            self.prompt.save(folder)
        else:
            (Path(folder) / prompts.FILE).unlink(missing_ok=True)

    @property
    def has_chat_template(self) -> bool:
        """Whether it belongs to an instruct model."""
        return bool(self._tokenizer.chat_template)

    def with_prompt(
        self, prompt: str | PromptTemplate, instruction: str | None = None
    ) -> "Tokenizer":
        """The same tokenizer with another prompt.

        Args:
            prompt: `completion`, `chat` or `prefix`, or another tokenizer's prompt.
            instruction: what a chat says above the query, or the prefix as it is, its
                trailing space included; by default that of `prompts.INSTRUCTIONS`.

        Raises:
            ValueError: the tokenizer cannot write this prompt, or no such kind.
        """
        if not isinstance(prompt, PromptTemplate):
            prompt = prompts.make(self._tokenizer, prompt, instruction)
        elif instruction is not None:
            raise ValueError("a finished prompt takes no instruction: leave it out")
        return Tokenizer(self._tokenizer, prompt)

    def check_same(
        self, other: "Tokenizer", mine: str = "teacher", others: str = "student"
    ) -> None:
        """Refuses two tokenizers that do not turn every text into the same ids.

        Args:
            other: the tokenizer to compare with.
            mine: what the message calls the owner of this tokenizer.
            others: what the message calls the owner of the other.

        Raises:
            ValueError: vocabulary, BOS, EOS, tokenisation or prompt differ; the
                message says which and shows the first difference.
        """
        advice = (
            "Both need the same tokenizer files: take two models of one family, or "
            "train both on one tokenizer"
        )
        found = compare.difference(self._tokenizer, other._tokenizer, (mine, others))
        for name in ("bos", "eos"):
            ids = [getattr(self, name), getattr(other, name)]
            if not found and ids[0] != ids[1]:
                tokens = self._tokenizer.convert_ids_to_tokens(ids)
                found = f"{name.upper()} is {tokens[0]!r} and {tokens[1]!r}"
                advice = (
                    "A base and an instruct model may end a text differently: take two "
                    f"of a kind, or set {name}_token in both tokenizer_config.json"
                )
        if not found and self.prompt != other.prompt:
            found = f"the prompt is {self.prompt} and {other.prompt}"
            advice = (
                f"Train the {others} with the {mine}'s prompt: "
                f"with_prompt({mine}.prompt)"
            )
        if found:
            raise ValueError(
                f"the tokenizers of {mine} and {others} differ: {found}. {advice}"
            )

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids without special tokens, even where a text spells one out."""
        return self._encode(texts)

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
        """PromptBatch as id lists of at most `max_tokens`, the end of the query kept.

        Raises:
            ValueError: the tokenizer has no prompt, or `max_tokens` has no room for a
                token of the query.
        """
        if not self.prompt:
            raise self._no_prompt()
        before, after = self._layout.before, self._layout.after
        taken = len(before) + len(after)
        if max_tokens <= taken:
            raise ValueError(
                f"max_tokens={max_tokens} leaves no room for a query: the "
                f"{self.prompt.kind} prompt alone takes {taken} tokens. Raise "
                f"max_tokens (max_source) to {taken + 1} at the very least, or shorten "
                "the instruction"
            )
        room = max_tokens - taken
        return [
            [*before, *ids[max(0, len(ids) - room) :], *after]
            for ids in self._layout.queries(queries, self._encode)
        ]

    def _no_prompt(self) -> ValueError:
        if self._encoder_only:
            return ValueError(
                "the tokenizer has no token for a newline, which ends a prompt, or "
                "none for the end of a text: it serves encoders only; give a language "
                "model's tokenizer folder"
            )
        return ValueError(
            "the tokenizer has no token for a newline, which ends the prompt of a "
            "completion: if it is an encoder-decoder's, use with_prompt('prefix')"
        )

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
        """Rows of text pairs for an encoder; the longer text is cut if need be.

        Around the texts stands what the folder's pair template says. Segments are 0
        up to the second text and 1 from there on.

        Raises:
            ValueError: `max_tokens` has no room for the template.
        """
        if not first:
            return []
        start, middle, end = self._pair_template()
        taken = len(start) + len(middle) + len(end)
        if max_tokens < taken:
            raise ValueError(
                f"max_tokens={max_tokens} has no room for two texts: what stands "
                f"around them takes {taken} tokens. Raise max_tokens"
            )
        rows = []
        labels = [0] * len(first) if labels is None else labels
        for one, two, label in zip(
            self.encode(first), self.encode(second), labels, strict=True
        ):
            one, two = _longest_first(one, two, max_tokens - taken)
            one, two = [*start, *one, *middle], [*two, *end]
            segments = [0] * len(one) + [1] * len(two)
            rows.append(EncoderRow([*one, *two], segments, label))
        return rows

    def _pair_template(self) -> tuple[list[int], list[int], list[int]]:
        """The ids before, between and behind two texts; there is always a middle."""
        # Any letter shows where the texts are.
        (pair,) = self._tokenizer(["a"], ["a"]).encodings
        sides = pair.sequence_ids
        one, two = sides.index(0), sides.index(1)
        last = len(sides) - sides[::-1].index(0)
        end = len(sides) - sides[::-1].index(1)
        # GPT-2's folder has no template, its texts would run into each other.
        middle = pair.ids[last:two] or self._newline or [self.eos]
        return pair.ids[:one], middle, pair.ids[end:]


def _longest_first(
    one: list[int], two: list[int], most: int
) -> tuple[list[int], list[int]]:
    """At most `most` ids of two lists, as the longer one loses its last id in turn."""
    if len(one) + len(two) <= most:
        return one, two
    half, odd = divmod(most, 2)
    kept = half + odd if len(one) > len(two) else half
    kept = min(len(one), max(kept, most - len(two)))
    return one[:kept], two[: most - kept]


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


def pad_prompts(sources: Sequence[list[int]], width: int, fill: int) -> PromptBatch:
    """`PromptBatch` of the given width."""
    return PromptBatch(*pad_left(sources, width, fill))

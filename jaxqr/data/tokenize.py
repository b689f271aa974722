"""Text to token ids and back: where text meets arrays on the way in.

A `Tokenizer` is a Hugging Face tokenizer folder, given or trained here, plus the
layout in which the package writes texts:

- a prompt is what a `PromptTemplate` makes of a row, such as `BOS query newline`,
  padded on the left; where it is too long, each slot's text loses the end that the
  template says (a query its beginning), and the rest of the prompt nothing;
- a target is `text EOS`, padded on the right; one too long is cut and has no EOS,
  because it is not finished;
- plain text is a target after the prompt `BOS`;
- an encoder reads `[CLS] query [SEP] product [SEP]`, or whatever the folder's own
  pair template says; if that puts nothing between the two, a newline or EOS does.

Any string is a text: a lone surrogate, which has no UTF-8, is read as U+FFFD.

Token ids say nothing about padding: BOS, EOS and padding may share an id, the masks
made by `jaxqr.data.rows` are the only truth.
"""

import logging
import os
import tempfile
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from jaxqr.data import compare, folders, prompts
from jaxqr.data.encoding import Encode, valid_unicode
from jaxqr.data.prompt_ids import tokenize_template
from jaxqr.data.prompts import DATE, PromptTemplate, Source
from jaxqr.data.rows import EncoderRow, Row, longest_first
from jaxqr.data.rows import pad_left as pad_left
from jaxqr.data.rows import pad_pairs as pad_pairs
from jaxqr.data.rows import pad_prompts as pad_prompts
from jaxqr.data.rows import pad_right as pad_right

END_OF_TEXT = "<|endoftext|>"


class Tokenizer:
    """A Hugging Face fast tokenizer that knows the layout above.

    Attributes:
        vocab_size: highest id + 1, the added and special ones included. A vocabulary
            with holes has fewer tokens.
        bos: id that opens a prompt; the end-of-text id where the folder has none.
        eos: id that closes a target.
        prompt: what is written around a row's texts; None if nothing says what.
    """

    def __init__(self, tokenizer: Any, prompt: PromptTemplate | None = None):
        """Wraps a transformers tokenizer.

        Without a prompt, a tokenizer that has a newline writes completions.

        Raises:
            ValueError: the prompt needs a newline or an EOS that is not there, or the
                tokenizer has no token that ends a text.
        """
        self._tokenizer = tokenizer
        self.vocab_size: int = 1 + max(tokenizer.get_vocab().values())
        eos = tokenizer.eos_token_id
        # BERT-like folders have no end of text; they are only used as encoders.
        self._encoder_only = eos is None
        eos = tokenizer.sep_token_id if eos is None else eos
        if eos is None:
            raise ValueError(
                "the tokenizer has neither a token for the end of a text nor a "
                "separator: set eos_token in its tokenizer_config.json to the token "
                "that the model ends a text with"
            )
        self.eos: int = eos
        bos = tokenizer.bos_token_id
        self.bos: int = self.eos if bos is None else bos
        self._encode = Encode(tokenizer)
        (newline,) = self._encode.after("a", ["\n"])
        decoded = tokenizer.decode(newline, clean_up_tokenization_spaces=False)
        # BERT drops a newline, T5 makes a space or an unknown token of it.
        self._newline = newline if decoded == "\n" else []
        if prompt is None and self._newline:
            prompt = prompts.make(tokenizer, "completion")
        self.prompt = prompt
        if prompt:
            lacking = {"completion": not self._newline, "prefix": self._encoder_only}
            if lacking.get(prompt.kind):
                raise self._no_prompt()
            self._template = tokenize_template(prompt, self._encode, self.bos, self.eos)

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """Reads a Hugging Face tokenizer folder; nothing is downloaded.

        Its prompt is the one `save` has written there.

        Raises:
            FileNotFoundError: no tokenizer files in `folder`.
            ValueError: its files are broken, or transformers cannot read them; its
                `prompt.json` is broken, or not for this tokenizer.
        """
        folder = Path(folder)
        tokenizer, prompt = folders.read(folder), PromptTemplate.load(folder)
        try:
            return cls(tokenizer, prompt)
        except ValueError as error:
            where = folder / prompts.FILE if prompt else folder
            raise ValueError(f"{where}: {error}") from None

    def save(self, folder: str | Path) -> None:
        """Writes a folder that `load` and transformers' `AutoTokenizer` read.

        Only the tokenizer's own files and `prompt.json` are written, so that
        `Tokenizer.load(model).save(folder)` takes the tokenizer out of a model's
        folder: with its ids, chat template and prompt, without weights.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as written:
            self._tokenizer.save_pretrained(written)
            for path in Path(written).iterdir():
                os.replace(path, folder / path.name)
        if self.prompt:
            self.prompt.save(folder)
        else:
            (folder / prompts.FILE).unlink(missing_ok=True)

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
                trailing space included; by default that of `prompts.INSTRUCTIONS`. With
                slots in braces it is all of it: `prompts.parse` has the rules.

        Raises:
            ValueError: the tokenizer cannot write this prompt, or no such kind.
        """
        if not isinstance(prompt, PromptTemplate):
            prompt = prompts.make(self._tokenizer, prompt, instruction)
        elif instruction is not None:
            raise ValueError("a finished prompt takes no instruction: leave it out")
        return Tokenizer(self._tokenizer, prompt)

    def check_fits(self, vocab_size: int, folder: str | Path) -> None:
        """Refuses a model that has no embedding of some of the ids.

        Args:
            vocab_size: rows of the model's embedding.
            folder: of both, for the message.

        Raises:
            ValueError: there are ids of `vocab_size` or more.
        """
        if self.vocab_size > vocab_size:
            raise ValueError(
                f"{folder}: the tokenizer has {self.vocab_size} ids, the model "
                f"{vocab_size}: they are not of one model"
            )

    def check_same(
        self, other: "Tokenizer", mine: str = "teacher", others: str = "student"
    ) -> None:
        """Refuses two tokenizers that do not turn every text into the same ids.

        Args:
            other: the tokenizer to compare with.
            mine: what the message calls the owner of this tokenizer.
            others: what the message calls the owner of the other.

        Raises:
            ValueError: vocabulary, BOS, EOS, tokenization or prompt differ; the
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

    def source(self, sources: Sequence[Source], max_tokens: int) -> list[list[int]]:
        """Prompts as id lists of at most `max_tokens`.

        Where a prompt is too long, the longest of the texts that may be cut loses a
        token, in turn, of equally long ones the last; each keeps at least one.

        Where a literal runs into a slot, such that the ids are not those that the
        tokenizer makes of the whole text, a warning is logged, once.

        Args:
            sources: a mapping of slot to text each; or the text itself, where the
                prompt has one slot.
            max_tokens: what a prompt may take, its literals included.

        Raises:
            ValueError: the tokenizer has no prompt, a source does not fit its slots, or
                `max_tokens` has no room for what is never cut and a token of each slot.
        """
        if not self.prompt:
            raise self._no_prompt()
        if self._template.difference:
            _warn_once(
                f"the prompt {self.prompt} is not tokenized as this tokenizer "
                f"tokenizes the whole text: {self._template.difference}. Training and "
                "serving agree all the same, but to a pretrained model such tokens may "
                "be new. A space or a newline between a slot and the text next to it "
                "avoids it"
            )
        return self._template.rows(sources, max_tokens, self._encode)

    def chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """The ids of a whole conversation, up to where the next answer begins.

        A special token that a text spells out is parted by a blank, and stays text.

        Raises:
            ValueError: the tokenizer has no chat template.
        """
        if not self.has_chat_template:
            raise ValueError(
                "the tokenizer has no chat template, as that of a base model: give the "
                "folder of an instruct model"
            )
        text = self._tokenizer.apply_chat_template(
            [m | {"content": self._harmless(m["content"])} for m in messages],
            add_generation_prompt=True,
            tokenize=False,
            date_string=DATE,
        )
        return self._encode([text], special=True)[0]

    def answers(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of texts as an answer begins with them, without a space before."""
        return self._encode.after("\n", texts)

    def _harmless(self, text: str) -> str:
        text = valid_unicode(text)
        for token in self._tokenizer.all_special_tokens:
            text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

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
        self, pairs: Iterable[tuple[Source, str]], *, max_source: int, max_target: int
    ) -> list[Row]:
        """Rows of (source, target) pairs, such as a query and its rewrite."""
        pairs = list(pairs)
        sources = self.source([source for source, _ in pairs], max_source)
        targets = self.target([target for _, target in pairs], max_target)
        return [Row(s, t) for s, t in zip(sources, targets, strict=True)]

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
        weights: Sequence[float] | None = None,
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
        weights = [1.0] * len(first) if weights is None else weights
        encoded = self.encode(first), self.encode(second)
        for one, two, label, weight in zip(*encoded, labels, weights, strict=True):
            one, two = longest_first(one, two, max_tokens - taken)
            one, two = [*start, *one, *middle], [*two, *end]
            segments = [0] * len(one) + [1] * len(two)
            rows.append(EncoderRow([*one, *two], segments, label, weight))
        return rows

    def alone(
        self, texts: Sequence[str], *, max_tokens: int
    ) -> tuple[list[EncoderRow], list[slice]]:
        """Rows of single texts for an encoder, and where its own tokens are in each."""
        start, _, end = self._pair_template()
        most = max(0, max_tokens - len(start) - len(end))
        rows, places = [], []
        for ids in self.encode(texts):
            tokens = [*start, *ids[:most], *end]
            rows.append(EncoderRow(tokens, [0] * len(tokens), 0))
            places.append(slice(len(start), len(tokens) - len(end)))
        return rows, places

    def _pair_template(self) -> tuple[list[int], list[int], list[int]]:
        """The ids before, between and after two texts; there is always a middle."""
        # Any letter shows where the texts are.
        (pair,) = self._tokenizer(["a"], ["a"]).encodings
        sides = pair.sequence_ids
        one, two = sides.index(0), sides.index(1)
        last = len(sides) - sides[::-1].index(0)
        end = len(sides) - sides[::-1].index(1)
        # GPT-2's folder has no template, its texts would run into each other.
        middle = pair.ids[last:two] or self._newline or [self.eos]
        return pair.ids[:one], middle, pair.ids[end:]


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
        map(valid_unicode, texts),
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
        folders.transformers().PreTrainedTokenizerFast(
            tokenizer_object=backend,
            bos_token=END_OF_TEXT,
            eos_token=END_OF_TEXT,
            pad_token=END_OF_TEXT,
            cls_token="[CLS]",
            sep_token="[SEP]",
        )
    )


@cache
def _warn_once(message: str) -> None:
    """A tokenizer is loaded many times in a run."""
    logging.getLogger(__name__).warning(message)

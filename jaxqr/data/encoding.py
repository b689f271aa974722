"""Texts to ids, nothing added, and no special token that a text merely spells."""

from collections.abc import Sequence
from typing import Any


def valid_unicode(text: str) -> str:
    r"""The text with U+FFFD in place of every lone surrogate.

    Half an emoji, cut off by a field's length, and bytes that were read with
    `errors="surrogateescape"` are such code points. They have no UTF-8, so the
    tokenizers library refuses them, and with them all texts of the same call. Two
    surrogates that belong together become the character that they encode.

    >>> valid_unicode("red \ud83d shoes"), valid_unicode("\ud83d\udc5f")
    ('red � shoes', '👟')
    """
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


class Encode:
    """Turns texts into ids, with or without the special tokens that they spell."""

    def __init__(self, tokenizer: Any):
        """Wraps a transformers fast tokenizer."""
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.items()
        special = {index for index, token in added if token.special}
        # What the vocabulary lacks stays unknown.
        self._special = special - {tokenizer.unk_token_id}

    def __call__(
        self, texts: Sequence[str], *, special: bool = False
    ) -> list[list[int]]:
        """The ids of texts; if `special`, "</s>" in a text is that token.

        Raises:
            ValueError: the vocabulary lacks a character of a text, and a token for
                unknown ones too.
        """
        if not texts:
            return []
        try:
            rows = self._tokenizer(
                [valid_unicode(text) for text in texts],
                add_special_tokens=False,
                split_special_tokens=not special,
                # Texts are cut later, so a long one is no reason for a warning.
                verbose=False,
            )["input_ids"]
        except Exception as error:
            # The tokenizers library knows no other class; Python's own pass.
            if type(error) is not Exception:
                raise
            raise ValueError(
                f"the tokenizer cannot encode every text: {error}. A text has a "
                "character that is not in its vocabulary, and it has no token for "
                "unknown ones: set the unk_id or unk_token of the model in "
                "tokenizer.json, or give another tokenizer"
            ) from None
        if special:
            return rows
        return [
            ids if self._special.isdisjoint(ids) else self._spell_out(ids)
            for ids in rows
        ]

    def _spell_out(self, ids: list[int]) -> list[int]:
        """Letters in place of special tokens.

        SentencePiece models have </s> in their vocabulary, where the tokenizers library
        finds it if a text spells it, though no special token is looked for.
        """
        backend = self._tokenizer.backend_tokenizer
        spelled = []
        for index in ids:
            if index in self._special:
                for letter in backend.id_to_token(index):
                    spelled += [piece.id for piece in backend.model.tokenize(letter)]
            else:
                spelled.append(index)
        return spelled

    def after(
        self, context: str, texts: Sequence[str], *, special: bool = False
    ) -> list[list[int]]:
        """The ids of texts as they are after `context`, without those of `context`.

        SentencePiece puts a space before a text, but only where the whole text begins.
        """
        if not context:
            return self(texts, special=special)
        (known,) = self([context], special=special)
        joined = self([context + text for text in texts], special=special)
        # A text whose first letters form one token with the context is encoded alone.
        return [
            ids[len(known) :]
            if ids[: len(known)] == known
            else self([text], special=special)[0]
            for text, ids in zip(texts, joined, strict=True)
        ]

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """What the vocabulary calls these ids, to show them."""
        return self._tokenizer.convert_ids_to_tokens(list(ids))

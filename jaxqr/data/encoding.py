"""Texts to ids, nothing added, and no special token that a text merely spells."""

from collections.abc import Sequence
from typing import Any


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
        """The ids of texts; if `special`, "</s>" in a text is that token."""
        if not texts:
            return []
        rows = self._tokenizer(
            list(texts), add_special_tokens=False, split_special_tokens=not special
        )["input_ids"]
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

    def behind(
        self, context: str, texts: Sequence[str], *, special: bool = False
    ) -> list[list[int]]:
        """The ids of texts as they are behind `context`, without those of `context`.

        SentencePiece begins a text with a blank, but only where it begins.
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

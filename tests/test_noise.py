"""Corrupted texts: what may happen to them, and what never does."""

from collections import Counter

import numpy as np

from jaxqr.data.noise import corrupted, denoising_pairs

TEXTS = ["Red running shoe, size 42 (men's)", "Sofa", "  ", "blue-grey lamp for desks"]


def test_targets_are_spans_of_the_text():
    pairs = denoising_pairs(TEXTS, 50, np.random.default_rng(0))
    assert len(pairs) == 150  # the text of whitespace has none
    bare = ["red running shoe size 42 men's", "sofa", "blue-grey lamp for desks"]
    for i, (source, target) in enumerate(pairs):
        assert f" {target} " in f" {bare[i // 50]} "
        assert source
    lengths = Counter(len(target.split()) for _, target in pairs[:50])
    assert set(lengths) == {1, 2, 3, 4, 5, 6}


def test_a_seed_decides():
    one, same = (denoising_pairs(TEXTS, 3, np.random.default_rng(5)) for _ in range(2))
    assert one == same != denoising_pairs(TEXTS, 3, np.random.default_rng(6))


def test_every_way_of_corrupting_happens_and_so_does_none():
    rng = np.random.default_rng(0)
    words = ["abcdef", "ghijkl", "mnopqr"]
    seen = Counter()
    for _ in range(2000):
        got = corrupted(words, rng)
        bare = got.replace(" ", "")
        if got == " ".join(words):
            seen["nothing"] += 1
        elif sorted(got.split()) == words:
            seen["swap"] += 1
        elif got.split() and set(got.split()) < set(words):
            seen["drop"] += 1
        elif bare == "".join(words):
            seen["join"] += 1
        elif len(got.split()) == 3 and len(set(got.split()) - set(words)) == 1:
            (word,) = set(got.split()) - set(words)
            kind = {5: "omitted", 7: "doubled", 6: "changed"}[len(word)]
            seen[kind] += 1
        else:
            seen["several"] += 1
    # Independent: 0.75 * 0.75 * 0.9 * 0.6 of the texts come through whole.
    assert abs(seen["nothing"] / 2000 - 0.30) < 0.04
    assert {"swap", "drop", "join", "omitted", "doubled", "changed"} <= set(seen)


def test_the_last_word_stays():
    rng = np.random.default_rng(0)
    # Too short for a typing error.
    assert all(corrupted(["ab"], rng) == "ab" for _ in range(100))
    assert all(corrupted(["abc", "de"], rng) for _ in range(100))

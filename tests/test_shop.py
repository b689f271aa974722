import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from math import log

import numpy as np
import pytest

from jaxqr.data import q2q, shop
from jaxqr.data.shop.assortment import COMPLEMENTS, TYPES
from jaxqr.data.shop.catalogue import Attributes
from jaxqr.data.shop.queries import KINDS, Intent, phrase, relevance, type_relevance
from jaxqr.data.shop.words import BRANDS, FACETS
from jaxqr.records import Labels


@pytest.fixture(scope="module")
def small():
    return shop.make(num_products=1600, num_intents=120, seed=3)


@pytest.fixture(scope="module")
def full():
    return shop.make()


def words(text):
    return re.findall(r"[\w']+", text.lower())


def product_text(product):
    fields = product._replace(id="", price=None)
    return " ".join(text for text in fields if text)


def test_word_lists_are_consistent():
    assert len({kind.department for kind in TYPES.values()}) >= 8
    assert len(TYPES) >= 40
    assert {kind.department for kind in TYPES.values()} == BRANDS.keys()
    for name, kind in TYPES.items():
        assert COMPLEMENTS[name], name
        assert set(kind.complements) <= TYPES.keys(), name
        for other in COMPLEMENTS[name]:
            # A type cannot be both used with another and a substitute for it.
            assert type_relevance(name, other) == "C"
            assert name in COMPLEMENTS[other]
        for facet, values in kind.facets.items():
            assert set(values) <= FACETS[facet].keys(), name
            assert len(set(values)) == len(values), name


def test_the_catalogue_does_not_speak_the_shoppers_language(full):
    products = full.collection.products.values()
    vocabulary = {word for product in products for word in words(product_text(product))}
    terms = [term for facet in FACETS.values() for term in facet.values()]
    terms += [kind.term for kind in TYPES.values()]
    for term in terms:
        for said in term.shopper:
            assert set(words(said)) - vocabulary, f"{said!r} is catalogue language"
    # Were nothing on the shelves, the test above would pass too.
    for term in terms:
        assert set(words(term.catalogue[0])) <= vocabulary


def test_relevance_by_hand():
    shoe = Attributes("athletic shoes", "Tamsole", color="red", audience="men")
    wanted = Intent("athletic shoes", (("audience", "men"), ("color", "red")))
    assert relevance(wanted, shoe) == "E"
    assert relevance(wanted, shoe._replace(brand="Corvane", size="size 9")) == "E"
    assert relevance(wanted, shoe._replace(color="navy")) == "S"
    assert relevance(wanted, shoe._replace(type="slip-on loafers")) == "S"
    assert relevance(wanted, shoe._replace(type="crew socks")) == "C"
    assert relevance(wanted, shoe._replace(type="frying pan")) == "I"
    assert relevance(Intent("athletic shoes", ()), shoe._replace(color="navy")) == "E"


def test_judgements_are_true(small):
    judgements = small.collection.judgements
    rows = list(zip(*judgements[:3], strict=True))
    assert len({(query, id) for query, id, _ in rows}) == len(rows)
    for query, id, label in rows:
        assert shop.true_label(small.truth, query, id) == label
    lists = Counter(judgements.query)
    assert lists.keys() == small.truth.intents.keys() == small.collection.split.keys()
    assert all(22 <= count <= 28 for count in lists.values())
    found = defaultdict(set)
    for query, _, label in rows:
        found[query].add(label)
    assert all({"E", "I"} <= labels for labels in found.values())
    assert np.mean([labels == set("ESCI") for labels in found.values()]) > 0.9


def test_unknown_query_or_product(small):
    query, id = next(iter(small.truth.intents)), next(iter(small.truth.attributes))
    for asked in ((query, "P"), ("no such query", id)):
        with pytest.raises(ValueError, match=re.escape(repr(asked[0]))):
            shop.true_label(small.truth, *asked)


def test_the_truth_is_kept_in_a_file(small, tmp_path):
    path = tmp_path / "truth.json"
    small.truth.save(path)
    assert [found.name for found in tmp_path.iterdir()] == ["truth.json"]
    kept = shop.Truth.load(path)
    assert kept == small.truth
    rows = list(zip(*small.collection.judgements[:3], strict=True))
    for query, id, label in rows[::7]:
        assert shop.true_label(kept, query, id) == label


def test_intents_have_more_products_than_a_page(small):
    specific = {
        intent
        for query, intent in small.truth.intents.items()
        if small.truth.phrasing[query] != "vague"
    }
    assert len(specific) == 120
    for intent in specific:
        labels = [relevance(intent, a) for a in small.truth.attributes.values()]
        assert 15 <= labels.count("E") <= 60
        assert 1 <= len(intent.constraints) <= 3


def test_texts_tell_attributes_but_not_all(small):
    told, products = Counter(), small.collection.products
    for id, a in small.truth.attributes.items():
        text = product_text(products[id]).lower()
        kind = TYPES[a.type]
        assert any(wording.lower() in text for wording in kind.term.catalogue)
        assert products[id].brand == a.brand
        assert products[id].price > 0
        for facet in set(FACETS) & kind.facets.keys():
            if value := getattr(a, facet):
                wordings = FACETS[facet][value].catalogue
                told[facet, any(w.lower() in text for w in wordings)] += 1
    for facet in FACETS:
        share = told[facet, True] / (told[facet, True] + told[facet, False])
        assert 0.5 < share < 0.99, facet


def test_phrasings(small):
    by_intent = defaultdict(list)
    for query, intent in small.truth.intents.items():
        by_intent[intent].append(small.truth.phrasing[query])
        for facet, value in intent.constraints:
            if small.truth.phrasing[query] == "clean":
                known = (value,) if facet == "brand" else FACETS[facet][value].catalogue
                assert any(wording.lower() in query for wording in known)
    assert set(small.truth.phrasing.values()) == set(KINDS)
    full_intents = [kinds for kinds in by_intent.values() if "clean" in kinds]
    assert len(full_intents) == 120
    assert all(kinds.count("clean") <= 2 for kinds in full_intents)
    # With the vague ones, which state less, 4 to 10 queries for each intent.
    assert 4 <= len(small.truth.intents) / 120 <= 10


def test_misspelled_words_are_near(small):
    rng = np.random.default_rng(0)
    intent = Intent("athletic shoes", (("color", "charcoal"),))
    correct = set(words("charcoal graphite dark grey gray"))
    kind = TYPES["athletic shoes"].term
    correct |= {w for text in (*kind.catalogue, *kind.shopper) for w in words(text)}
    for _ in range(50):
        query, _ = phrase(rng, intent, "misspelled")
        wrong = [word for word in query.split() if word not in correct]
        # Rarely an error makes another word of the list.
        assert len(wrong) <= 2
        for word in wrong:
            assert min(edits(word, right) for right in correct) <= 2


def edits(a, b):
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


def test_one_component_per_intent(full):
    pairs = q2q.query_pairs(full.collection)
    statistics = pairs.statistics
    assert statistics.components == 800
    assert statistics.largest_component <= 10
    assert min(len(side) for side in pairs[:3]) > 1000
    for query, rewrite in pairs.train:
        a, b = full.truth.intents[query], full.truth.intents[rewrite]
        assert a.type == b.type
        # Equal, or one or both leave out constraints; never another value.
        values = dict(a.constraints)
        assert all(values.get(facet, value) == value for facet, value in b.constraints)


def test_official_split_is_by_intent(full):
    sides = defaultdict(set)
    for query, intent in full.truth.intents.items():
        sides[intent].add(full.collection.split[query])
    assert all(len(side) == 1 for side in sides.values())
    share = np.mean([s == "test" for s in full.collection.split.values()])
    assert 0.12 < share < 0.18
    untested = shop.make(num_products=800, num_intents=9, test_share=0.0)
    assert set(untested.collection.split.values()) == {"train"}


def bm25(texts):
    """A small BM25 (k1 1.2, b 0.75) over words; returns `search(query, k)`."""
    documents = [Counter(words(text)) for text in texts]
    lengths = np.array([sum(d.values()) for d in documents], float)
    postings = defaultdict(list)
    for i, document in enumerate(documents):
        for word, count in document.items():
            postings[word].append((i, count))

    def search(query, k):
        score = np.zeros(len(documents))
        for word in set(words(query)) & postings.keys():
            at, tf = (np.array(column) for column in zip(*postings[word], strict=True))
            idf = log(1 + (len(documents) - len(at) + 0.5) / (len(at) + 0.5))
            norm = 1.2 * (0.25 + 0.75 * lengths[at] / lengths.mean())
            score[at] += idf * tf / (tf + norm)
        best = np.argsort(-score, kind="stable")[:k]
        return best[score[best] > 0]

    return search


def test_the_catalogues_language_finds_more(full):
    products = list(full.collection.products.values())
    search = bm25([product_text(product) for product in products])
    gains, clean = defaultdict(list), defaultdict(list)
    for query in list(full.truth.intents)[:600]:
        hits = [products[i].id for i in search(query, 10)]
        labels = [shop.true_label(full.truth, query, id) for id in hits]
        kind = full.truth.phrasing[query]
        gains[kind].append(sum(map(Labels().gain, labels)) / 10)
        if kind == "clean":
            clean[full.truth.intents[query]].append(set(hits))
    mean = {kind: np.mean(values) for kind, values in gains.items()}
    for kind in ("synonym", "misspelled", "over-specified"):
        assert mean[kind] < mean["clean"] - 0.1, mean
    assert 0.5 < mean["clean"] < 0.9
    new = [1 - len(a & b) / 10 for a, b in (p for p in clean.values() if len(p) == 2)]
    assert 0.3 < np.mean(new) < 0.95


def test_same_arguments_same_shop(small):
    # In another process, where sets of strings have another order.
    code = (
        "from jaxqr.data import shop\n"
        "made = shop.make(num_products=800, num_intents=12, seed=5)\n"
        "print(repr((list(made.truth.intents.items()),\n"
        "    list(made.truth.attributes.items()),\n"
        "    list(made.collection.products.values()), list(made.collection.split),\n"
        "    [column.tolist() for column in made.collection.judgements[:3]])))\n"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
        ).stdout
        for seed in "12"
    }
    assert len(printed) == 1
    other = shop.make(num_products=1600, num_intents=120, seed=4)
    assert other.collection.products != small.collection.products


def test_too_many_intents():
    with pytest.raises(ValueError, match=r"300 products make \d+ intents, not 500"):
        shop.make(num_products=300, num_intents=500)
    with pytest.raises(ValueError, match="test_share"):
        shop.make(test_share=1.0)

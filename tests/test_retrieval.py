"""Search against brute-force BM25; the analyser against Elasticsearch's answers."""

import math
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from jaxqr.records import Hits, Product
from jaxqr.retrieval.analysis import tokens
from jaxqr.retrieval.cached import CachedRetriever
from jaxqr.retrieval.documents import title_brand_color
from jaxqr.retrieval.embedded import EmbeddedRetriever

# What `POST /_analyze {"analyzer": "standard"}` of Elasticsearch 8.19.4 answered.
SERVER = {
    '3/4" bolt': ["3", "4", "bolt"],
    "½ cup 1½ x² H₂O": ["cup", "1", "x", "h", "o"],
    "a:b -free don't o'neil's U.S.A. 3.14 1,000 a_b _ __": [
        *("a:b", "free", "don't", "o'neil's", "u.s.a", "3.14", "1,000", "a_b")
    ],
    "日本語テスト ひらがな カタカナー": [
        *("日", "本", "語", "テスト", "ひ", "ら", "が", "な", "カタカナー")
    ],
    "🇺🇸 👨‍👩‍👧 ❤️ ™ ® 1️⃣ #️⃣ abc™ ★ ✓ ✔ Ⓜ": [
        *("🇺🇸", "👨‍👩‍👧", "❤️", "™", "®", "1️⃣", "#️⃣", "abc", "™", "★", "✔", "ⓜ")
    ],
    "ภาษาไทย ກຂ 한국어 ＡＢＣ１２３": ["ภาษาไทย", "ກຂ", "한국어", "ａｂｃ１２３"],
    "a\u200bb a\u00adb foo\u2060bar": ["a", "b", "a\u00adb", "foo\u2060bar"],
    "#1 * ☕☕ 5★ 😀😀👍🏽": ["1", "☕", "☕", "5", "★", "😀", "😀", "👍🏽"],
    "İSTANBUL ΟΔΟΣ straße ẞ": ["istanbul", "οδοσ", "straße", "ß"],
    "a..b can’t 'tis 'utility ’em d'oro x-ray": [
        *("a", "b", "can’t", "tis", "utility", "em", "d'oro", "x", "ray")
    ],
    "1a 1.a a.1 a1.b2 1,a": [*("1a", "1", "a", "a", "1", "a1", "b2", "1", "a")],
    "🇺🇸🇬 ① ㈱ ㌔ 〇 ª": ["🇺🇸", "㌔", "〇", "ª"],
    "a" * 300: ["a" * 255, "a" * 45],
}


@pytest.mark.parametrize("text", SERVER)
def test_the_analyser_answers_as_the_server(text):
    assert tokens(text) == SERVER[text]


def kept_length(length: int) -> int:
    """Lucene's SmallFloat.byte4ToInt(intToByte4(length)), from its definition."""
    if length < 24:
        return length
    rest = length - 24
    shift = max(rest.bit_length() - 4, 0)
    return 24 + (rest >> shift << shift)


def brute_force(texts: dict[str, str], query: str, k: int) -> list[tuple[str, float]]:
    terms = {i: Counter(t.split()) for i, t in texts.items() if t.split()}
    lengths = {i: counts.total() for i, counts in terms.items()}
    mean = sum(lengths.values()) / len(lengths)
    scores = Counter()
    for term in query.split():
        df = sum(term in counts for counts in terms.values())
        for i, counts in terms.items():
            if f := counts[term]:
                norm = 1.2 * (0.25 + 0.75 * kept_length(lengths[i]) / mean)
                idf = math.log(1 + (len(terms) - df + 0.5) / (df + 0.5))
                scores[i] += idf * 2.2 * f / (f + norm)
    ranked = sorted(scores.items(), key=lambda hit: (-round(hit[1], 6), hit[0]))
    return ranked[:k]


@pytest.fixture(scope="module")
def random_texts() -> dict[str, str]:
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(60)]
    chance = 1 / np.arange(1, 61)
    chance /= chance.sum()
    # Short ones tie often; the long ones reach the rounded lengths.
    lengths = np.where(
        rng.random(400) < 0.7, rng.integers(0, 6, 400), rng.integers(6, 300, 400)
    )
    return {
        f"p{i:03d}": " ".join(rng.choice(words, n, p=chance))
        for i, n in zip(rng.permutation(400), lengths, strict=True)
    }


@pytest.fixture(scope="module")
def random_index(random_texts) -> EmbeddedRetriever:
    return EmbeddedRetriever.build(Product(i, t) for i, t in random_texts.items())


def listed(hits, row=0) -> list[str]:
    return [i for i in hits.ids[row].tolist() if i]


@pytest.mark.parametrize("k", [1, 7, 50, 1000])
def test_lists_and_scores_are_those_of_bm25(random_texts, random_index, k):
    rng = np.random.default_rng(1)
    queries = [
        " ".join(rng.choice([f"w{i}" for i in range(70)], n))
        for n in rng.integers(1, 7, 40)
    ] + ["w0", "w59 w59", "w3 w3 w1", "nothing"]
    hits = random_index.search(queries, k)
    assert hits.ids.shape == hits.scores.shape == (len(queries), k)
    assert hits.scores.dtype == np.float32
    for row, query in enumerate(queries):
        expected = brute_force(random_texts, query, k)
        assert listed(hits, row) == [i for i, _ in expected]
        np.testing.assert_allclose(
            hits.scores[row, : len(expected)], [s for _, s in expected], atol=1e-4
        )
        assert not hits.scores[row, len(expected) :].any()


def test_ties_go_by_id_across_the_end_of_the_list():
    ids = [f"{i:03d}" for i in np.random.default_rng(0).permutation(300)]
    index = EmbeddedRetriever.build(Product(i, "red shoe") for i in ids[:200])
    index.add(Product(i, "red shoe") for i in ids[200:])
    for k in (1, 10, 299, 300):
        assert listed(index.search(["shoe"], k)) == sorted(ids)[:k]


@pytest.mark.parametrize(
    "query",
    [
        '3/4" bolt',
        "a:b",
        "-free",
        "☕",
        "日本",
        "sugar AND (NOT free)",
        "bolt\x00 \ud7ff",
        "\ud83d bolt\udce9",
    ],
)
def test_odd_queries_are_plain_words(query):
    texts = {"1": '3/4" bolt', "2": "a:b", "3": "-free sugar", "4": "☕ 日本 cup"}
    index = EmbeddedRetriever.build(Product(i, t) for i, t in texts.items())
    wanted = {i for i, t in texts.items() if set(tokens(t)) & set(tokens(query))}
    assert wanted
    assert set(listed(index.search([query], 4))) == wanted


def test_long_texts():
    words = " ".join(f"word{i}" for i in range(1000))
    index = EmbeddedRetriever.build([Product("a", words), Product("b", "x" * 10_000)])
    assert listed(index.search([words, "x" * 10_000], 2), 0) == ["a"]
    assert listed(index.search([words, "x" * 10_000], 2), 1) == ["b"]


def test_queries_without_terms_and_no_queries(random_index):
    hits = random_index.search(["", "   ", "?!", "w1"], 3)
    assert (hits.ids[:3] == "").all()
    assert not hits.scores[:3].any()
    assert (hits.ids[3] != "").all()
    assert random_index.search([], 3).ids.shape == (0, 3)
    assert (EmbeddedRetriever.build([]).search(["w1"], 3).ids == "").all()


def test_adding_replaces_and_deleting_removes():
    index = EmbeddedRetriever.build([Product("a", "red shoe"), Product("b", "red hat")])
    index.add([Product("a", "blue shoe"), Product("c", "green shoe")])
    assert index.count == 3
    assert listed(index.search(["red"], 5)) == ["b"]
    assert set(listed(index.search(["shoe"], 5))) == {"a", "c"}
    index.delete(["a", "unknown"])
    assert index.count == 2
    assert listed(index.search(["shoe"], 5)) == ["c"]
    index.add([Product("c", "!?")])  # nothing left to find it by
    assert index.count == 1


def test_a_failed_change_leaves_the_index_as_it_was(tmp_path):
    index = EmbeddedRetriever.build([Product("a", "red")], tmp_path / "index")
    with pytest.raises(ValueError, match="'b' occurs twice"):
        index.add([Product("a", "blue"), Product("b", "x"), Product("b", "y")])
    assert listed(index.search(["red"], 1)) == ["a"]
    assert index.count == 1
    index.add([Product("b", "green")])
    assert index.count == 2


def test_an_index_is_kept_in_its_folder(tmp_path, random_texts, random_index):
    path = tmp_path / "deep" / "index"
    products = [Product(i, t) for i, t in random_texts.items()]
    built = EmbeddedRetriever.build(products, path)
    opened = EmbeddedRetriever.open(path)
    for index in (built, opened):
        hits = index.search(["w1 w2 w40"], 30)
        expected = random_index.search(["w1 w2 w40"], 30)
        np.testing.assert_array_equal(hits.ids, expected.ids)
        np.testing.assert_array_equal(hits.scores, expected.scores)
    opened.add([Product("new", "neverseen")])
    assert listed(EmbeddedRetriever.open(path).search(["neverseen"], 1)) == ["new"]
    EmbeddedRetriever.build([Product("only", "one")], path)  # built again
    assert EmbeddedRetriever.open(path).count == 1
    assert [p.name for p in path.parent.iterdir()] == ["index"]


def by_bullets(product: Product) -> str:
    return product.bullets


def test_the_searched_text_belongs_to_the_index(tmp_path):
    product = Product("a", "title", bullets="bullet", brand="Acme", color="red")
    index = EmbeddedRetriever.build([product])
    assert listed(index.search(["acme red"], 1)) == ["a"]
    assert not listed(index.search(["bullet"], 1))
    EmbeddedRetriever.build([product], tmp_path / "i", by_bullets)
    opened = EmbeddedRetriever.open(tmp_path / "i", by_bullets)
    assert listed(opened.search(["bullet"], 1)) == ["a"]
    with pytest.raises(ValueError, match=r"by_bullets, not .*title_brand_color"):
        EmbeddedRetriever.open(tmp_path / "i")


def test_brand_and_colour_are_not_repeated():
    product = Product("a", "New Balance 574 Navy", brand="new balance", color="Navy")
    assert title_brand_color(product) == "New Balance 574 Navy"
    assert title_brand_color(product._replace(color="dark navy")).endswith("dark navy")


def test_what_cannot_be_indexed(tmp_path):
    with pytest.raises(ValueError, match="product 2 has the id ''"):
        EmbeddedRetriever.build([Product("a", "x"), Product("", "y")])
    with pytest.raises(ValueError, match=r"product 2 has the id .*ud83d.*half a char"):
        EmbeddedRetriever.build([Product("a", "x"), Product("b\ud83d", "y")])
    path = tmp_path / "half"
    with pytest.raises(ValueError, match="again as product 2"):
        EmbeddedRetriever.build([Product("a", "x"), Product("a", "y")], path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "precious.txt").write_text("keep")
    (tmp_path / "file").write_text("keep")
    for other in ("notes", "file"):
        with pytest.raises(ValueError, match="not a jaxqr index"):
            EmbeddedRetriever.build([Product("a", "x")], tmp_path / other)
    assert (tmp_path / "notes" / "precious.txt").read_text() == "keep"
    for nowhere in ("notes", "missing"):
        with pytest.raises(ValueError, match="not a jaxqr index"):
            EmbeddedRetriever.open(tmp_path / nowhere)


def test_k_must_be_positive(random_index):
    with pytest.raises(ValueError, match="k is 0"):
        random_index.search(["w1"], 0)


def test_threads_search_while_another_adds(random_texts):
    index = EmbeddedRetriever.build(Product(i, t) for i, t in random_texts.items())
    errors = []

    def search():
        try:
            for _ in range(30):
                assert listed(index.search(["w0 w1"] * 5, 10))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    for i in range(3):
        index.add([Product(f"new{i}", "w0 neverseen")])
    for thread in threads:
        thread.join()
    assert not errors
    assert set(listed(index.search(["neverseen"], 5))) == {"new0", "new1", "new2"}


# The cache


class Counting:
    """Lists a text's own letters; counts what it is asked, and fails as it is told."""

    def __init__(self):
        self.asked, self.failing, self.down = [], set(), False
        self.slow = 0.0

    def search(self, queries, k):
        if k < 1:
            raise ValueError(f"k is {k}")
        self.asked += [(query, k) for query in queries]
        time.sleep(self.slow)
        if self.down:
            raise ConnectionError("down")
        rows = [(list(query) + [""] * k)[:k] for query in queries]
        ids = np.array(rows, np.str_).reshape(len(rows), k)
        scores = np.tile(np.arange(k, 0, -1, dtype=np.float32), (len(rows), 1))
        valid = np.array([query not in self.failing for query in queries], np.bool_)
        return Hits(ids, scores * (ids != ""), valid)


def assert_same_hits(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype.kind == b.dtype.kind


def test_every_text_is_searched_once():
    engine = Counting()
    cached, plain = CachedRetriever(engine), Counting()
    for queries in (["ab", "c", "ab"], ["c", "def", "ab"], ["def"], ["ab"] * 3, []):
        assert_same_hits(cached.search(queries, 2), plain.search(queries, 2))
    assert engine.asked == [("ab", 2), ("c", 2), ("def", 2)]


def test_lists_of_another_length_are_searched_for():
    engine = Counting()
    cached, plain = CachedRetriever(engine), Counting()
    for k in (2, 1, 3, 2, 1):
        hits = cached.search(["abc", "d"], k)
        assert hits.ids.shape == hits.scores.shape == (2, k)
        assert_same_hits(hits, plain.search(["abc", "d"], k))
    assert engine.asked == [(text, k) for k in (2, 1, 3) for text in ("abc", "d")]
    for queries in (["abc"], ["new"], []):
        with pytest.raises(ValueError, match="k is 0"):
            cached.search(queries, 0)


def test_a_failed_search_is_not_kept():
    engine = Counting()
    cached = CachedRetriever(engine)
    engine.failing = {"b"}
    for _ in range(2):
        assert cached.search(["a", "b", "b", "c"], 2).valid.tolist() == [
            *(True, False, False, True)
        ]
    engine.failing = {"a"}  # what is known stays known
    for _ in range(2):
        assert cached.search(["a", "b"], 2).valid.all()
    assert engine.asked == [(text, 2) for text in "abcbb"]


def test_a_search_that_raises_leaves_the_cache_as_it_was():
    engine = Counting()
    cached = CachedRetriever(engine)
    cached.search(["a"], 1)
    engine.down = True
    with pytest.raises(ConnectionError):
        cached.search(["a", "b"], 1)
    assert cached.search(["a"], 1).valid.all()  # needs no engine
    engine.down = False
    assert cached.search(["b", "a"], 1).ids.tolist() == [["b"], ["a"]]
    assert engine.asked == [(text, 1) for text in "abb"]


def test_threads_share_the_cache():
    engine = Counting()
    engine.slow = 0.02
    cached = CachedRetriever(engine)
    texts = [f"text {i}" for i in range(12)]
    wanted = [texts[i : i + 6] for i in range(7)] * 3
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda queries: cached.search(queries, 9), wanted))
    assert sorted(engine.asked) == sorted((text, 9) for text in texts)
    for queries, hits in zip(wanted, found, strict=True):
        assert_same_hits(hits, Counting().search(queries, 9))

"""The judge over HTTP, against a fake that speaks the wire and misbehaves on purpose.

With JAXQR_LLM_URL set, also against a real server (its first model is asked).
"""

import json
import math
import os
import sqlite3
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.misbehaving import Reply, Request, serving
from jaxqr.records import Hits, Product
from jaxqr.rewards import questions
from jaxqr.rewards.llm import LLM, LLMJudge, NoAnswerError, equivalent, write_profiles
from jaxqr.rewards.llm.cache import Cache
from jaxqr.rewards.profiles import Profile, sample_profiles

SHOPPER = Profile("female", 30, "countryside", 50_000, 0.8, ("Acme", "Bolt"), "", "")
PRODUCTS = {
    name: Product(name, f"title {name}", brand="Acme", price=9.5) for name in "abcdef"
}


class Server:
    """A well-behaved model: what it says is a function of the conversation.

    Attributes:
        say: the distribution of the next token, of the question and what is said of
            the answer so far.
        asked: the bodies of all requests.
    """

    def __init__(self, say, *, logprobs=True, schema=True, continues=True):
        self.say, self.asked = say, []
        self.logprobs, self.schema, self.continues = logprobs, schema, continues
        self.odd = lambda number, body: None  # a reply instead, if any
        self.fingerprint = "one"
        self._lock = threading.Lock()

    def __call__(self, request: Request) -> Reply:
        body = request.json()
        with self._lock:
            self.asked.append(body)
            number = len(self.asked)
        assert request.path == "/v1/chat/completions"
        if (odd := self.odd(number, body)) is not None:
            return odd
        *_, last = body["messages"]
        (question,) = [m["content"] for m in body["messages"] if m["role"] == "user"]
        begun = ""
        if last["role"] == "assistant" and self.continues:
            begun = last["content"]
        if begun.endswith("5,"):
            return self.reply([{" 6": 0.9, "6": 0.1}])
        if "response_format" in body:
            if not self.schema:
                return Reply({"error": {"message": "no schemas here"}}, 400)
            return self.reply([{json.dumps({"number": 4}): 1.0}])
        places, text = [], begun
        for _ in range(body["max_tokens"]):
            legs = question.startswith("How many legs")
            places.append({"4": 1.0} if legs else self.say(question, text))
            text += max(places[-1], key=places[-1].get)
            if not text[-1].isdigit():
                break
        return self.reply(places, body.get("logprobs", False))

    def reply(self, places, logprobs=False) -> Reply:
        tokens = [max(place, key=place.get) for place in places]
        choice = {"message": {"role": "assistant", "content": "".join(tokens).strip()}}
        if logprobs and self.logprobs:
            content = [
                {
                    "token": token,
                    "logprob": math.log(place[token]),
                    "top_logprobs": [
                        {"token": t, "logprob": math.log(p)} for t, p in place.items()
                    ],
                }
                for token, place in zip(tokens, places, strict=True)
            ]
            choice["logprobs"] = {"content": content}
        usage = {"total_tokens": 100, "prompt_tokens": 99, "completion_tokens": 1}
        return Reply(
            {
                "choices": [choice | {"index": 0, "finish_reason": "stop"}],
                "usage": usage,
                "system_fingerprint": self.fingerprint,
            }
        )


def three(question, begun):
    return {"3": 0.5, "1": 0.25, "It": 0.25} if not begun else {"": 0.75, "2": 0.25}


def ask(server: Server, most: int = 20, **options) -> tuple[float, LLM]:
    message = [{"role": "user", "content": "how many?"}]
    with serving(server) as url, LLM(f"{url}/v1", "m", retries=0, **options) as llm:
        return llm.number(message, most), llm


def judge(server: Server, lists: list[str], both=False, **options):
    rows = [list(row) + [""] * (6 - len(row)) for row in lists]
    hits = Hits(
        np.array(rows),
        np.zeros((len(rows), 6), np.float32),
        np.ones(len(rows), np.bool_),
    )
    asked = [f"query {i}" for i in range(len(rows))]
    options = {"retries": 0} | options
    with serving(server) as url, LLM(f"{url}/v1", "m", **options) as llm:
        found = LLMJudge(llm, PRODUCTS, both_orders=both)(
            asked, hits, np.zeros((len(rows), 6)), [SHOPPER] * len(rows)
        )
    return found, llm.counts


# Reading numbers


def test_the_expected_number_by_hand():
    def after(text):
        assert text == "1"  # of 0..12 only 1 may go on
        return [("0", 0.2), ("2", 0.3), ("7", 0.1), (" 2", 0.2), ("\n", 0.2)]

    first = [
        ("1", 0.4),
        (" 5", 0.2),
        ("12", 0.05),
        ("13", 0.1),
        ("05", 0.1),
        ("x", 0.1),
    ]
    # 1: 0.4 * (1 - 0.6), 10: 0.08, 12: 0.12 and 0.05 at once, 17 is too large
    weights = {1: 0.16, 10: 0.08, 12: 0.12 + 0.05, 5: 0.2}
    expected = sum(n * w for n, w in weights.items()) / sum(weights.values())
    assert questions.expected_number(first, after, 12) == pytest.approx(expected)


def test_numbers_that_nobody_can_read():
    never = pytest.fail
    assert questions.expected_number([("The", 0.99), ("3", 0.01)], never, 9) is None
    assert questions.expected_number([("1", 0.9)], lambda _: None, 20) is None
    assert questions.expected_number([("1", 0.9)], never, 9) == 1  # 1 can only be 1
    assert questions.expected_number([("1", 0.005), ("3", 0.495)], never, 20) == (
        pytest.approx((0.005 + 3 * 0.495) / 0.5)
    )
    for text in ("seven", "7 of 9", "7.5", "", "٧", "1e3", "9" * 30):
        assert questions.number(text, 20) is None


def test_where_the_next_digits_are_seen():
    mean, llm = ask(Server(three), 20)
    # 1 is followed by 2 in a quarter of the cases: asked for, as 3 was said.
    assert mean == pytest.approx((3 * 0.5 + 1 * 0.1875 + 12 * 0.0625) / 0.75)
    assert llm.counts == Counter(answered=5)  # three probes, the question, what follows
    one = Server(lambda m, begun: {"1": 0.6, "3": 0.4} if not begun else {"2": 0.9})
    mean, llm = ask(one, 20)
    assert mean == pytest.approx(0.6 * 0.1 * 1 + 0.6 * 0.9 * 12 + 0.4 * 3)
    assert llm.counts == Counter(answered=4)  # the answer itself went on


def test_servers_that_can_do_less():
    mean, llm = ask(Server(three, continues=False), 20)
    assert mean == 3.0  # what was said
    assert llm.counts["no_distribution"] == 1
    plain = Server(three, logprobs=False)
    assert ask(plain, 20)[0] == 4.0  # by the schema
    assert plain.asked[-1]["response_format"]["json_schema"]["strict"]
    assert "logprobs" not in plain.asked[-1]
    assert ask(Server(three, logprobs=False, schema=False), 20)[0] == 3.0
    words = Server(lambda *_: {"Three": 1.0}, logprobs=False, schema=False)
    with pytest.raises(NoAnswerError, match="no_number"):
        ask(words)


# Judging


def test_rates_of_a_list():
    def say(text, begun):
        number = {"click": "4", "cart": "2", "buy": "1"}
        return {number[next(w for w in number if w in text.rpartition("How")[2])]: 1.0}

    server = Server(say)
    found, counts = judge(server, ["abcd", "ab"])
    assert found.valid.all()
    np.testing.assert_allclose(found.click, [1.0, 1.0])  # 4 of 2 is cut to 2
    np.testing.assert_allclose(found.add_to_cart, [0.5, 1.0])
    np.testing.assert_allclose(found.purchase, [0.25, 0.5])
    assert counts["answered"] == 3 + 6
    system, user = server.asked[-1]["messages"]
    assert system["content"] == questions.SHOPPER  # what is always the same is first
    assert "live in the countryside" in user["content"]
    assert "the brands Acme, Bolt" in user["content"]
    assert "title a | Acme | $9.50" in user["content"]


def test_both_orders_are_averaged():
    def say(text, begun):  # a model that counts from where `title a` stands
        lines = text.split("\n")
        place = next(
            line[0] for line in lines if line.endswith("title a | Acme | $9.50")
        )
        return {place: 1.0}

    one, _ = judge(Server(say), ["abcdef"])
    two, counts = judge(Server(say), ["abcdef"], both=True)
    place = questions.order(0, "query 0", list("abcdef")).tolist().index(0) + 1
    assert one.click[0] == pytest.approx(place / 6)
    assert two.click[0] == pytest.approx((place + 7 - place) / 2 / 6)
    assert counts["answered"] == 3 + 6


def test_a_failure_masks_its_row_and_is_counted():
    def odd(number, body):
        text = body["messages"][-1]["content"]
        if "query 1" in text and "buy" in text:
            return Reply({"error": {"message": "too long"}}, 400)
        if "query 2" in text:
            return Reply({}, 500)

    server = Server(three)
    server.odd = odd
    found, counts = judge(server, ["abc", "abc", "abc", "", "az"])
    assert found.valid.tolist() == [True, False, False, False, False]
    assert not found.click[1:].any()
    assert (counts["status_400"], counts["status_500"]) == (1, 3)
    assert (counts["no_list"], counts["unknown_product"]) == (1, 1)


GOOD = Server(three).reply([{"3": 1.0}]).body
BAD_LOGPROBS = [math.nan, math.inf, 3.0, "many", None]


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply(b"<html>no</html>"), "garbage"),
        (Reply(b"<html>no</html>", headers={"content-type": "text/html"}), "garbage"),
        (Reply({}), "garbage"),
        (Reply({"choices": []}), "garbage"),
        (Reply({"choices": [{"message": {"content": None}}]}), "garbage"),
        (Reply({"choices": [{"message": {"content": 3}}]}), "garbage"),
        (Reply(GOOD, sent=0.5), "connection"),
        (Reply(None, reset=True), "connection"),
        (Reply(GOOD, delay=2), "timeout"),
        (Reply(GOOD, drip=0.05), "timeout"),
        (Reply(GOOD, 429, {"retry-after": "0"}), "status_429"),
        (Reply(GOOD, 503), "status_503"),
        *(
            (
                Server(three)
                .reply([{"3": 1.0}])
                ._replace(
                    body={
                        "choices": [
                            {
                                "message": {"content": "3"},
                                "logprobs": {
                                    "content": [
                                        {
                                            "token": "3",
                                            "logprob": 0.0,
                                            "top_logprobs": [
                                                {"token": "3", "logprob": bad}
                                            ],
                                        }
                                    ]
                                },
                            }
                        ]
                    }
                ),
                "garbage",
            )
            for bad in BAD_LOGPROBS
        ),
    ],
)
def test_answers_that_are_none(reply, reason):
    server = Server(three)
    server.odd = lambda number, body: reply if number > 3 else None
    with pytest.raises(NoAnswerError, match=reason):
        ask(server, timeout=0.5)


def test_what_fails_for_now_is_asked_again():
    server, tries = Server(three), Counter()

    def odd(number, body):
        question = body["messages"][-1]["content"]
        tries[question] += 1
        if tries[question] < 3:
            status = (429, 500, 408, 409, 503)[number % 5]
            return Reply({}, status, {"retry-after": "0.01"})

    server.odd = odd
    found, counts = judge(server, ["abc"], retries=2, backoff=0.0)
    assert found.valid.all()
    assert counts == Counter(answered=3 + 3)
    server.odd = lambda number, body: Reply({}, 429, {"retry-after": "1000"})
    found, counts = judge(server, ["abc"], retries=2)  # does not wait for that
    assert counts == Counter(status_429=3)


def test_no_server_at_all():
    with serving(Server(three)) as url:
        pass
    with LLM(f"{url}/v1", "m", retries=0, timeout=1.0) as llm:
        for _ in range(2):  # a server that comes later is asked what it can do
            with pytest.raises(NoAnswerError, match="connection"):
                llm.number([{"role": "user", "content": "?"}], 9)
        assert llm.counts["connection"] == 2


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (401, PermissionError, "JAXQR_LLM_API_KEY"),
        (404, ValueError, "has no model 'm' or is no OpenAI"),
    ],
)
def test_what_no_question_can_mend(status, error, message):
    server = Server(three)
    server.odd = lambda number, body: Reply({"error": {"message": "no"}}, status)
    with pytest.raises(error, match=message):
        judge(server, ["abc"])


def test_the_key_is_sent():
    keys = []

    def answer(request):
        keys.append(request.headers["authorization"])
        return Server(three)(request)

    with serving(answer) as url, LLM(f"{url}/v1", "m", api_key="sesame") as llm:
        llm.abilities()
    assert set(keys) == {"Bearer sesame"}


def test_the_budget_stops_the_questions(caplog):
    server = Server(three)
    found, counts = judge(server, ["abc", "abd"], budget=500, concurrency=1)
    assert found.valid.tolist() == [False, False]  # 3 probes, 2 of 6 questions
    assert len(server.asked) == 5
    assert (counts["answered"], counts["budget"]) == (5, 4)
    assert caplog.text.count("the budget of 500 tokens is spent") == 1


# The cache


def test_no_question_is_paid_for_twice(tmp_path):
    file, server = tmp_path / "new" / "answers.sqlite", Server(three)
    first, counts = judge(server, ["abc"], cache=file)
    again, more = judge(server, ["abc"], cache=file)
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
    assert (counts["cached"], more["cached"], more["answered"]) == (0, 3, 3)
    server.fingerprint = "two"  # another state of the server: asked again
    _, changed = judge(server, ["abc"], cache=file)
    assert changed["cached"] == 0
    other = judge(Server(three), ["abd"], cache=file)[1]
    assert other["cached"] == 0


def test_a_server_that_changes_is_noticed(caplog, tmp_path):
    server = Server(three)
    message = [{"role": "user", "content": "how many?"}]
    with serving(server) as url, LLM(f"{url}/v1", "m") as llm:
        llm.number(message, 9)
        server.fingerprint = "two"
        llm.number(message, 9)
    assert "has changed: it is now two" in caplog.text


def test_a_cache_that_cannot_be_used(tmp_path, caplog, monkeypatch):
    (tmp_path / "text").write_text("no database, only a text" * 100)
    with pytest.raises(ValueError, match="is no cache of answers"):
        Cache(tmp_path / "text")
    cache = Cache(tmp_path / "cache")
    cache.put("a", "1")

    class Full:
        def execute(self, *_):
            raise sqlite3.OperationalError("database or disk is full")

        close = cache._database.close

    kept, cache._database = cache._database, Full()
    cache.put("b", "2")
    assert cache.get("a") is None
    assert caplog.text.count("disk is full") == 1
    cache._database = kept
    cache.put("a", "other")
    assert (cache.get("a"), cache.get("b")) == ("1", None)
    cache._database.execute("INSERT INTO answers VALUES ('x', 'no json')")
    cache.close()


def test_two_writers_share_a_cache(tmp_path):
    caches = [Cache(tmp_path / "cache") for _ in range(2)]

    def write(cache):
        for i in range(200):
            cache.put(f"k{i}", f"v{i}")
            assert cache.get(f"k{i}") == f"v{i}"

    threads = [threading.Thread(target=write, args=(cache,)) for cache in caches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert caches[0].get("k199") == "v199"
    for cache in caches:
        cache.close()


def test_nothing_is_left_over(tmp_path):
    def left():
        return len(list(Path("/proc/self/fd").iterdir())), threading.active_count()

    judge(Server(three), ["abc"])  # what libraries open once
    before = left()
    judge(Server(three), ["abc", "abd"], cache=tmp_path / "cache")
    assert left() == before


# The other questions


def test_equivalence_of_queries():
    def say(text, begun):
        same = "red shoe" in text and "shoe, red" in text
        if "hose" in text:
            return {"Perhaps": 1.0}
        return {"Yes": 0.6, "No": 0.2, "It": 0.2} if same else {"no": 0.9, "yes": 0.1}

    pairs = [("red shoe", "shoe, red"), ("red shoe", "boot"), ("red", "hose")]
    with serving(Server(say)) as url, LLM(f"{url}/v1", "m") as llm:
        found, valid = equivalent(llm, pairs)
    np.testing.assert_allclose(found, [0.75, 0.1, 0.0], atol=1e-6)
    assert valid.tolist() == [True, True, False]
    assert llm.counts["no_yes_or_no"] == 1
    with serving(Server(say, logprobs=False)) as url, LLM(f"{url}/v1", "m") as llm:
        assert equivalent(llm, pairs)[0].tolist() == [1.0, 0.0, 0.0]


def test_shoppers_that_a_model_writes():
    wanted = sample_profiles(4, 0, brands=["Acme"])

    def odd(number, body):
        if body["max_tokens"] < 100:
            return None
        if body["seed"] % 2:
            return Server(three).reply([{"I am a shopper": 1.0}])
        text = json.dumps(wanted[body["seed"] // 2 % 4]._asdict())
        return Server(three).reply([{f"Here: {text}": 1.0}])

    server = Server(three)
    server.odd = odd
    with serving(server) as url, LLM(f"{url}/v1", "m") as llm:
        assert write_profiles(llm, 4, 0, brands=["Acme"]) == wanted
        assert llm.counts["no_profile"] == 4
        assert "the brands Acme" in server.asked[-1]["messages"][0]["content"]
        server.odd = lambda number, body: None
        with pytest.raises(RuntimeError, match="wrote 0 of 2 shoppers in 6 answers"):
            write_profiles(llm, 2, 7)


@pytest.mark.skipif("JAXQR_LLM_URL" not in os.environ, reason="no JAXQR_LLM_URL")
def test_a_real_server():
    from openai import OpenAI

    url = os.environ["JAXQR_LLM_URL"]
    with OpenAI(base_url=url, api_key="none") as client:
        name = client.models.list().data[0].id
    with LLM(url, name, timeout=120.0, concurrency=2) as llm:
        assert llm.abilities().logprobs
        hits = Hits(
            np.array([list("abcdef")]), np.zeros((1, 6), np.float32), np.ones(1, bool)
        )
        found = LLMJudge(llm, PRODUCTS)(["title"], hits, np.zeros((1, 6)), [SHOPPER])
    print(found, llm.counts)
    rates = np.array([found.click, found.add_to_cart, found.purchase])
    assert ((rates >= 0) & (rates <= 1)).all()
    assert llm.counts["answered"] >= 3


def test_pairs_are_verified_on_request(tmp_path):
    from experiments import prepare
    from experiments.config import Lengths, LLMConfig, Prepare

    def say(text, begun):
        searches = text.partition("First search: ")[2].split("\nSecond search: ")
        return {"yes" if len(searches[0]) == len(searches[1]) else "no": 1.0}

    settings = Prepare(
        products=300, types=3, intents=60, vocab_size=400, lengths=Lengths(16, 16, 16)
    )
    with serving(Server(say)) as url:
        llm = LLMConfig(url=f"{url}/v1", model="m", retries=0)
        for verify in (False, True):
            run = tmp_path / str(verify)
            prepare.main(run, replace(settings, verify=verify, llm=llm))
    plain, verified = (prepare.Prepared(tmp_path / name) for name in ("False", "True"))
    kept = {p for part in verified.pairs.values() for p in part}
    expected = {p for part in plain.pairs.values() for p in part}
    assert kept == {(a, b) for a, b in expected if len(a) == len(b)}
    assert 0 < len(kept) < len(expected)
    with pytest.raises(ConnectionError, match="pairs could not be verified"):
        prepare.main(tmp_path / "other", replace(settings, verify=True, llm=llm))
    with pytest.raises(ValueError, match=r"give --.*llm\.url"):
        prepare.main(tmp_path / "none", replace(settings, verify=True))

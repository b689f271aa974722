"""Scoring while the device works: overlap, failures, timeouts, the process's end."""

import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from jaxqr.records import Hits, Reward
from jaxqr.rewards import ScoringPool


def lengths(queries: list[str], rewrites: list[str]) -> Reward:
    total = np.array([len(text) for text in rewrites], np.float32)
    return Reward(total, {}, np.ones(len(rewrites), np.bool_))


def failing(queries: list[str], rewrites: list[str]) -> Reward:
    if "bad" in rewrites:
        raise ConnectionError("search engine is down")
    return lengths(queries, rewrites)


def test_scoring_overlaps_with_other_work():
    started, go_on = threading.Event(), threading.Event()

    def reward(queries, rewrites):
        started.set()
        assert go_on.wait(10)
        return lengths(queries, rewrites)

    with ScoringPool(reward) as pool:
        pending = pool.submit(("q", "q"), ("a", "bcd"))
        assert started.wait(10)  # and here the device would generate
        go_on.set()
        assert pending.result().total.tolist() == [1, 3]
        assert pending.result() is pending.result()


def test_batches_keep_their_order_and_workers_their_number():
    running, most, lock = 0, 0, threading.Lock()

    def reward(queries, rewrites):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.02)
        with lock:
            running -= 1
        return lengths(queries, rewrites)

    with ScoringPool(reward, workers=2) as pool:
        batches = [pool.submit(["q"], ["x" * i]) for i in range(8)]
    # Closing does not drop what was handed over.
    assert [batch.result().total[0] for batch in batches] == list(range(8))
    assert most == 2


def test_a_failure_masks_its_batch_only(caplog):
    with ScoringPool(failing) as pool:
        first = pool.submit(["q"] * 3, ["a", "bad", "c"])
        second = pool.submit(["q"], ["abc"])
        masked = first.result()
        assert first.result() is masked
        assert second.result().total.tolist() == [3]
    assert masked.total.tolist() == [0, 0, 0]
    assert masked.total.dtype == np.float32
    assert masked.valid.tolist() == [False] * 3
    assert not masked.parts
    assert not masked.flags
    assert pool.failures == 1
    assert "ConnectionError: search engine is down" in caplog.text


def test_failures_in_a_row_stop_the_run():
    with ScoringPool(failing, max_consecutive_failures=2) as pool:
        for _ in range(3):  # a success between two failures starts the count again
            assert not pool.submit(["q"], ["bad"]).result().valid.any()
            assert pool.submit(["q"], ["fine"]).result().valid.all()
        pool.submit(["q"], ["bad"]).result()
        last = pool.submit(["q"], ["bad"])
        with pytest.raises(RuntimeError, match=r"2 times in a row.*is down") as raised:
            last.result()
    assert isinstance(raised.value.__cause__, ConnectionError)
    assert pool.failures == 5


def test_a_batch_that_hangs_is_abandoned(caplog):
    hang = threading.Event()

    def reward(queries, rewrites):
        if rewrites == ["hang"]:
            hang.wait(30)
        return lengths(queries, rewrites)

    with ScoringPool(reward, timeout=0.2) as pool:
        hanging = pool.submit(["q"], ["hang"])
        # Waits longer than the time-out itself, but its own scoring is quick.
        queued = pool.submit(["q"], ["fine"])
        assert queued.result().valid.all()
        assert not hanging.result().valid.any()
    assert "TimeoutError: no scores after 0.2 s" in caplog.text
    hang.set()


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_a_stop_is_not_a_failure(stop):
    def reward(queries, rewrites):
        raise stop

    with ScoringPool(reward) as pool:
        pending = pool.submit(["q"], ["r"])
        with pytest.raises(stop):
            pending.result()
    assert pool.failures == 0


@pytest.mark.parametrize(
    ("total", "message"),
    [([1.0, 2.0], "expected one of each for 1 texts"), ([np.nan], "not finite")],
)
def test_a_malformed_reward_is_a_failure(total, message, caplog):
    def reward(queries, rewrites):
        total_ = np.array(total, np.float32)
        return Reward(total_, {}, np.ones(len(total), np.bool_))

    with ScoringPool(reward) as pool:
        assert pool.submit(["q"], ["r"]).result().valid.tolist() == [False]
    assert message in caplog.text


def test_refused():
    for options in (
        {"workers": 0},
        {"max_consecutive_failures": 0},
        {"timeout": 0.0},
        {"retries": -1},
        {"backoff": -0.5},
    ):
        with pytest.raises(ValueError, match="expected"):
            ScoringPool(lengths, **options)
    pool = ScoringPool(lengths)
    pool.close()
    pool.close()
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit(["q"], ["r"])


def test_workers_score_at_the_same_time():
    """The barrier lets nobody pass before both are there."""
    both = threading.Barrier(2, timeout=10)

    def reward(queries, rewrites):
        both.wait()
        return lengths(queries, rewrites)

    with ScoringPool(reward, workers=2) as pool:
        batches = [pool.submit(["q"], ["x" * i]) for i in range(4)]
        assert [batch.result().total[0] for batch in batches] == [0, 1, 2, 3]
    assert pool.failures == 0


def test_results_go_to_their_own_batch():
    """The first batch is done last."""
    second = threading.Event()

    def reward(queries, rewrites):
        if rewrites == ["first"]:
            assert second.wait(10)
        return lengths(queries, rewrites)

    with ScoringPool(reward, workers=2) as pool:
        first, last = pool.submit(["q"], ["first"]), pool.submit(["q"], ["a second"])
        assert last.result().total.tolist() == [8]
        second.set()
        assert first.result().total.tolist() == [5]


def fails_first(times, error=ConnectionError):
    """A reward that works from call `times` + 1 on, and when it was called."""
    calls = []

    def reward(queries, rewrites):
        calls.append(time.monotonic())
        if len(calls) <= times:
            raise error("search engine is down")
        return lengths(queries, rewrites)

    return reward, calls


def test_a_failed_batch_is_scored_again_after_longer_and_longer_waits():
    reward, calls = fails_first(3)
    with ScoringPool(reward, retries=3, backoff=0.05) as pool:
        assert pool.score(["q"], ["abc"]).total.tolist() == [3]
    assert pool.failures == 0
    waits = np.diff(calls)
    assert len(waits) == 3
    assert (waits >= [0.05, 0.1, 0.2]).all()


def test_retries_come_to_an_end(caplog):
    reward, calls = fails_first(3)
    with ScoringPool(reward, retries=2, backoff=0.0) as pool:
        assert not pool.score(["q"], ["abc"]).valid.any()
        assert len(calls) == 3
        assert pool.score(["q"], ["abc"]).valid.all()
    assert pool.failures == 1
    assert caplog.text.count("search engine is down") == 1


def test_a_malformed_reward_is_asked_for_again():
    answers = [np.zeros(2, np.float32), np.array([0.5], np.float32)]

    def reward(queries, rewrites):
        return Reward(answers.pop(0), {}, np.ones(1, np.bool_))

    with ScoringPool(reward, retries=1, backoff=0.0) as pool:
        assert pool.score(["q"], ["r"]).total.tolist() == [0.5]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_a_stop_is_not_tried_again(stop):
    reward, calls = fails_first(1, stop)
    with ScoringPool(reward, retries=5, backoff=0.0) as pool, pytest.raises(stop):
        pool.score(["q"], ["r"])
    assert len(calls) == 1


def test_the_timeout_includes_the_retries(caplog):
    reward, calls = fails_first(1000)
    with ScoringPool(reward, retries=4, backoff=0.1, timeout=0.5) as pool:
        before = time.monotonic()
        assert not pool.score(["q"], ["r"]).valid.any()
        assert time.monotonic() - before < 5
    assert "TimeoutError: no scores after 0.5 s" in caplog.text
    # Of a batch that nobody waits for any more, no further call is made: the next one
    # would come 0.4 s after the third.
    asked = len(calls)
    assert 1 <= asked <= 3
    time.sleep(1)
    assert len(calls) == asked


def test_the_message_names_the_failures_of_this_streak():
    reasons = iter(["first", "fine", "second", "third", "second", "fourth", "fifth"])

    def reward(queries, rewrites):
        if (reason := next(reasons)) != "fine":
            raise ConnectionError(reason)
        return lengths(queries, rewrites)

    with ScoringPool(reward, max_consecutive_failures=3) as pool:
        for _ in range(4):
            pool.score(["q"], ["r"])
        with pytest.raises(RuntimeError) as raised:
            pool.score(["q"], ["r"])
        named = "(ConnectionError: second; ConnectionError: third)"
        assert f"failed 3 times in a row {named}. Check" in str(raised.value)
        # Whoever goes on all the same begins a new streak.
        for _ in range(2):
            assert not pool.score(["q"], ["r"]).valid.any()
    assert pool.failures == 6


def test_a_batch_without_a_valid_row_is_a_failure():
    def reward(queries, rewrites):
        """The first word of a rewrite says what fails."""
        flags = {
            name: np.array([text.split()[0] == name for text in rewrites], np.bool_)
            for name in ("search_failed", "judge_failed", "copy")
        }
        valid = ~flags["search_failed"] & ~flags["judge_failed"]
        return Reward(np.zeros(len(rewrites), np.float32), {}, valid, flags)

    bad = ["search_failed", "judge_failed", "search_failed", "search_failed too"]
    with ScoringPool(reward, retries=2, max_consecutive_failures=2) as pool:
        lost = pool.score(["q"] * 4, bad)
        assert lost.flags["search_failed"].tolist() == [True, False, True, True]
        assert pool.failures == 1
        assert pool.score(["q"] * 2, ["search_failed", "copy"]).valid.any()
        pool.score(["q"], ["judge_failed"])
        with pytest.raises(RuntimeError) as raised:
            pool.score(["q"] * 4, bad)
        pool.score([], [])  # has no row that could be valid
        assert pool.failures == 3
    for part in (
        "none of 1 rows is valid: judge failed for 1",
        "none of 4 rows is valid: search failed for 3, judge failed for 1",
    ):
        assert part in str(raised.value)
    assert raised.value.__cause__ is None


def test_rows_that_are_not_valid_may_have_any_total():
    def reward(queries, rewrites):
        total = np.array([0.5, np.nan], np.float32)
        return Reward(total, {}, np.array([True, False]))

    with ScoringPool(reward) as pool:
        assert pool.score(["q"] * 2, ["a", "b"]).valid.tolist() == [True, False]


def test_a_closed_pool_has_no_threads_left():
    before = set(threading.enumerate())
    pool = ScoringPool(lengths, workers=3)
    assert len(set(threading.enumerate()) - before) == 3
    assert pool.score(["q"], ["abc"]).total.tolist() == [3]
    pool.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive()
    with pytest.raises(RuntimeError, match="closed"):
        pool.score(["q"], ["r"])


def test_a_hung_batch_does_not_keep_python_alive():
    program = """
import time
from jaxqr.rewards import ScoringPool
pool = ScoringPool(lambda queries, rewrites: time.sleep(60), timeout=0.1)
pool.submit(["q"], ["r"]).result()
pool.submit(["q"], ["r"])
"""
    done = subprocess.run([sys.executable, "-c", program], timeout=20, check=False)
    assert done.returncode == 0


def test_many_texts_are_scored_in_batches_of_which_one_may_fail():
    """A failing batch costs its own rows, parts and lists included."""

    def reward(queries: list[str], rewrites: list[str]) -> Reward:
        if "c" in queries:
            raise OSError("down")
        rows = len(queries)
        return Reward(
            np.array([float(text) for text in rewrites], np.float32),
            {"relevance": np.full(rows, 0.5, np.float32)},
            np.ones(rows, np.bool_),
            {"copy": np.ones(rows, np.bool_)},
            Hits(
                np.array([[q, ""] for q in queries]),
                np.ones((rows, 2), np.float32),
                np.ones(rows, np.bool_),
            ),
        )

    with ScoringPool(reward) as pool:
        scored = pool.score(list("abcde"), ["1", "2", "3", "4", "5"], batch_size=2)
    assert scored.valid.tolist() == [True, True, False, False, True]
    np.testing.assert_array_equal(scored.part("total"), [1, 2, np.nan, np.nan, 5])
    expected = [0.5, 0.5, np.nan, np.nan, 0.5]
    np.testing.assert_array_equal(scored.part("relevance"), expected)
    assert scored.flags["copy"].tolist() == [True, True, False, False, True]
    assert scored.hits is not None
    assert scored.hits.ids[:, 0].tolist() == ["a", "b", "", "", "e"]
    assert scored.hits.valid.tolist() == [True, True, False, False, True]

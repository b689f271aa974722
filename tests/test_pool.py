"""Scoring while the device works: overlap, failures, timeouts, the process's end."""

import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from jaxqr.records import Reward
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
        for _ in range(3):  # a success between two failures starts the count anew
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
    for options in ({"workers": 0}, {"max_consecutive_failures": 0}, {"timeout": 0.0}):
        with pytest.raises(ValueError, match="expected"):
            ScoringPool(lengths, **options)
    pool = ScoringPool(lengths)
    pool.close()
    pool.close()
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit(["q"], ["r"])


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

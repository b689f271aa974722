"""Seconds of the fault campaign; `benchmarks.faults` goes on for minutes."""

import pytest

from benchmarks import faults


def test_a_campaign_of_faults():
    report = faults.campaign(faults.Config(seconds=10.0))
    rows, injected = report["rows"], report["injected"]
    assert rows["wrong"] == 0  # no failure became a number
    assert 0 < rows["valid"] < rows["all"]
    assert report["updates"] > 5
    assert report["after"] == report["before"]
    # What was injected shows in the counts.
    for server in ("search", "judge", "reward"):
        assert sum(injected[server].values()) > injected[server]["none"] > 0
    assert report["judge"]["answered"] > 0
    assert sum(report["remote"].values()) > report["remote"]["scored"] > 0


def test_without_faults_every_row_is_valid_and_the_same():
    report = faults.campaign(faults.Config(seconds=4.0, share=0.0))
    rows = report["rows"]
    assert rows == {"all": rows["all"], "valid": rows["all"], "wrong": 0}


@pytest.mark.parametrize("name", faults.FAULTS)
def test_every_fault_is_one(name):
    """It changes what a server answers, or when."""
    good = faults.Reply({"total": [0.5], "valid": [True]})
    assert faults.FAULTS[name](good) != good

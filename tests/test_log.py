"""What a run writes down, and what a person sees of it."""

import io
import re

import pytest
from rich.console import Console

from jaxqr.train.log import MetricWriter, ProgressBar, read_metrics

TITLES = ("sft", "distill", "online_dpo", "adversarial")


def shown(title, step, num_steps, values, seconds=90.0, terminal=True):
    """The last line of a progress bar on 80 columns, without its colors."""
    clock = [0.0]
    output = io.StringIO()
    console = Console(
        file=output, width=80, force_terminal=terminal, get_time=lambda: clock[0],
        color_system=None, legacy_windows=False,
    )  # fmt: skip
    bar = ProgressBar(title, 0, num_steps, console)
    for done in range(1, 6):  # the time that is left is estimated from these
        clock[0] += seconds
        bar.show(step - 5 + done, values)
    bar.close()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.getvalue())
    return [line.rstrip() for line in re.split(r"[\r\n]+", text) if line.strip()][-1]


@pytest.mark.parametrize("title", TITLES)
@pytest.mark.parametrize(
    ("step", "num_steps", "loss", "reward", "speed"),
    [
        (169, 2000, 2.3456, 0.7312, 1234.5),
        (12345, 20000, 0.012345, 0.6543, 123456.7),
        (19999, 20000, 1.2345e-05, -0.012345, 1234567.0),
        (169, 2000, 12.34, float("nan"), 99.94),
        (99999, 100000, 11.9, 0.000123, 45678.0),
    ],
)
def test_the_bar_fits_eighty_columns(title, step, num_steps, loss, reward, speed):
    values = {"loss": loss, "reward": reward, "tokens_per_second": speed}
    line = shown(title, step, num_steps, values)
    assert len(line) <= 80
    assert "…" not in line
    assert line.startswith(title)
    assert f"{step}/{num_steps}" in line.replace(" ", "")
    numbers = re.search(r"loss (\S+) reward (\S+) tok/s (\S+)", line)
    assert numbers, line
    found = [float(number) for number in numbers.groups()]
    assert found == pytest.approx([loss, reward, speed], rel=5e-3, nan_ok=True)
    left = 90 * (num_steps - step)
    minutes, hours = left // 60 % 60, left // 3600
    expected = f"{hours}:{minutes:02}:" if hours else f"{minutes:02}:"
    assert line.split()[-1].startswith(expected), line


def test_numbers_stay_between_the_steps_that_are_logged():
    output = io.StringIO()
    console = Console(file=output, width=80, force_terminal=True, color_system=None)
    bar = ProgressBar("sft", 0, 10, console)
    bar.show(1, {"loss": 0.5})
    bar.show(2, {})
    bar.close()
    last = output.getvalue().rsplit("2/10", 1)
    assert "loss 0.5" in last[1]


def test_where_there_is_no_terminal_some_twenty_lines_are_printed():
    output = io.StringIO()
    console = Console(file=output, width=80, force_terminal=False)
    bar = ProgressBar("sft", 0, 100, console)
    for step in range(1, 101):
        bar.show(step, {"loss": 1 / step, "grad_norm": 3.0})
    bar.note("a line [of] text")
    bar.close()
    printed = output.getvalue().splitlines()
    assert printed[:2] == ["sft  5/100  loss 0.2", "sft  10/100  loss 0.1"]
    assert printed[-1] == "a line [of] text"
    assert len(printed) == 21


def test_lines_after_the_checkpoint_are_written_again(tmp_path):
    """And those of its step's evaluation, failed or not; the others stay."""
    writer = MetricWriter(tmp_path, 0)
    writer.write(0, "evaluation", {"s": 1.0})
    for step in (1, 2, 3):
        writer.write(step, "train", {"loss": float(step)})
        if step == 1:
            writer.write_failure(1, "OSError: 'é'\nand more")
        else:
            writer.write(step, "evaluation", {"s": float("inf")})
    writer.close()
    before = read_metrics(tmp_path / "metrics.jsonl")
    assert before[2] == {
        "step": 1,
        "kind": "failure",
        "error": "OSError: 'é'\nand more",
    }
    assert before[-1] == {"step": 3, "kind": "evaluation", "s": None}
    MetricWriter(tmp_path, 2).close()
    assert read_metrics(tmp_path / "metrics.jsonl") == before[:4]
    MetricWriter(tmp_path, 1).close()
    assert read_metrics(tmp_path / "metrics.jsonl") == before[:2]

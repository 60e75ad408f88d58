"""Lines that outlive a killed run, and silence where nobody listens."""

import json

import pytest
import torch

from minibio.run.dist import Ranks
from minibio.run.log import RunLog, duration, is_due, progress

FIRST, SECOND = (Ranks(rank, rank, 2, torch.device("cpu")) for rank in range(2))


def test_every_line_is_on_disk_at_once(tmp_path):
    events = [{"event": "start", "seed": 1}, {"event": "train", "step": 1, "loss": 0.25}]
    with RunLog(tmp_path / "log.jsonl", FIRST) as log:
        for n, event in enumerate(events, start=1):
            log.write(event)
            lines = (tmp_path / "log.jsonl").read_text("utf-8").splitlines()
            assert [json.loads(line) for line in lines] == events[:n]


def test_other_ranks_write_nothing(tmp_path):
    with RunLog(tmp_path / "log.jsonl", SECOND) as log:
        log.write({"event": "start"})
    assert not (tmp_path / "log.jsonl").exists()


def test_closed_when_the_run_fails(tmp_path):
    with pytest.raises(KeyboardInterrupt), RunLog(tmp_path / "log.jsonl", FIRST) as log:
        raise KeyboardInterrupt
    assert log.file.closed


def test_no_bar_off_the_terminal(capsys):
    for ranks in (FIRST, SECOND):
        bar = progress(3, "tiny", ranks)
        bar.update()
        bar.set_postfix_str("loss 1")
        bar.close()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0123, "12.3 ms"), (3.4, "3.4 s"), (300, "5 min"), (36000, "10 h"), (864000, "10 days")],
)
def test_durations_have_a_unit(seconds, text):
    assert duration(seconds) == text


def test_the_first_steps_are_logged_whatever_the_interval():
    assert [s for s in range(1, 26) if is_due(s, 8, 25)] == [1, 2, 5, 8, 10, 16, 24, 25]
    assert all(is_due(s, 1, 25) for s in range(1, 26))

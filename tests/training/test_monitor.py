"""The monitor warns of a prompter that no longer depends on the instruction."""

import logging

import pytest

from promptembedder.training.monitor import DivergenceMonitor, MonitorConfig


def monitor(patience: int) -> DivergenceMonitor:
    return DivergenceMonitor(MonitorConfig(patience=patience), check_entropy=True, last_good=lambda: None)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "become a constant" in record.getMessage()]


def test_a_constant_prompter_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    watched = monitor(3)
    with caplog.at_level(logging.WARNING):
        for step in range(1, 9):
            watched.check_soft_tokens({"instruction_variance": 0.001}, step=step)
    assert len(warnings(caplog)) == 1
    assert warnings(caplog)[0].startswith("step 3: the instruction explains 0.1 %")


def test_a_prompter_that_depends_on_the_instruction_is_not(caplog: pytest.LogCaptureFixture) -> None:
    watched = monitor(2)
    with caplog.at_level(logging.WARNING):
        for step, variance in enumerate([0.001, 0.2, 0.001, None, 0.3, 0.001], 1):
            watched.check_soft_tokens({} if variance is None else {"instruction_variance": variance}, step=step)
    assert warnings(caplog) == []

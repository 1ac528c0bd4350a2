"""Every fault of a night, each injected into a run of its own: minutes in all, so not in the default suite."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.faults import FAULTS, Fault, main, run_fault, table
from benchmarks.outcome import Outcome


def test_the_table_marks_a_fault_that_did_not_go_as_expected(capsys: pytest.CaptureFixture[str]) -> None:
    def inject(folder: Path, outcome: Outcome) -> None:
        outcome.note("relaxed")
        raise AssertionError("timed out;\nevents: none")

    outcome = run_fault(Fault("a fault", "all is well", inject), Path())
    assert not outcome.is_as_expected
    text = table([(FAULTS[0], [Outcome()]), (FAULTS[1], [outcome])])
    assert "**not as expected:** relaxed; **timed out; events: none**" in text
    assert main(["--list", "--only", "killed"]) == 0
    assert "actor killed (SIGKILL)" in capsys.readouterr().out


def test_the_table_gives_the_rate_of_a_fault_that_is_injected_often() -> None:
    good, bad = Outcome(["relaxed"]), Outcome(["**torque is on**"], is_as_expected=False, lost=3)
    lines = table([(FAULTS[0], [good, bad, good]), (FAULTS[1], [good, good])]).splitlines()
    assert lines[2].endswith("| **as expected in 2 of 3:** **torque is on** | 3 |")
    assert lines[3].endswith("| as expected in 2 of 2: relaxed | 0 |")


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_a_fault_costs_neither_data_nor_the_night(tmp_path: Path, fault: Fault) -> None:
    outcome = run_fault(fault, tmp_path)
    assert outcome.is_as_expected, outcome.lines

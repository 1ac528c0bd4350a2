"""Every fault of a night, injected into a run of its own: minutes in all, so not in the default suite."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.faults import FAULTS, Fault, Seen, main, run_one, table


def test_the_table_says_what_was_not_as_expected(capsys: pytest.CaptureFixture[str]) -> None:
    def breaks(folder: Path, seen: Seen) -> None:
        seen.note("relaxed")
        raise AssertionError("timed out;\nevents: none")

    found = run_one(Fault("a fault", "all is well", breaks), Path())
    assert not found.is_as_expected
    assert "not as expected:** relaxed; **timed out; events: none**" in table([(FAULTS[0], Seen()), (FAULTS[1], found)])
    assert main(["--list", "--only", "killed"]) == 0
    assert "actor killed (SIGKILL)" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_a_fault_costs_neither_data_nor_the_night(tmp_path: Path, fault: Fault) -> None:
    seen = run_one(fault, tmp_path / "first")
    if not seen.is_as_expected:  # a machine that stands still for seconds is no fault of ours; what is ours comes twice
        seen = run_one(fault, tmp_path / "second")
    assert seen.is_as_expected, seen.lines

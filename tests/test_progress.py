from __future__ import annotations

import io
import sys
import time

import pytest

from r3l.run.progress import progress_bar


class Stream(io.StringIO):
    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


@pytest.mark.parametrize(("is_terminal", "most"), [(True, 100), (False, 3)])
def test_a_kept_output_gets_few_lines_and_a_terminal_a_live_bar(
    is_terminal: bool, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Stream(is_terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar("work", "thing", 8) as bar:
        for _ in range(8):
            time.sleep(0.12)
            bar.update()
    shown = [part for part in stream.getvalue().replace("\n", "\r").split("\r") if part.strip()]
    assert "8/8" in shown[-1]
    assert len(shown) <= most
    assert not is_terminal or len(shown) >= 5

"""The report of a run: one self-contained HTML page that reads the run directory only."""

from r3l.evaluation.report.document import write_report

__all__ = ["write_report"]

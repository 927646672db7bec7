"""The page about a table: `write_report`."""

from semid_dataset.report.page import write_report

__all__ = ["write_report"]

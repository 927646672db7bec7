"""The page about a table, `write_report`, and what it says as data, `report_facts`."""

from semid_dataset.report.facts import report_facts
from semid_dataset.report.page import write_report

__all__ = ["report_facts", "write_report"]

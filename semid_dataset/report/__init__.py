"""The page about a table, `write_report`, what it says as data, `report_facts`, and two tables side by side."""

from semid_dataset.report.compare import compare, write_comparison
from semid_dataset.report.facts import report_facts
from semid_dataset.report.page import write_report

__all__ = ["compare", "report_facts", "write_comparison", "write_report"]

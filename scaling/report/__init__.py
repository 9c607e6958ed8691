"""A run's prediction beside what was measured."""

from scaling.report.comparison import comparison, table

__all__ = ["comparison", "table"]

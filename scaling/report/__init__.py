"""What a run has come to: its steps, what happened, and its prediction beside what was measured."""

from scaling.report.comparison import comparison, table
from scaling.report.history import event_sentence, events_of, facts_table, steps_of, summary
from scaling.report.page import page

__all__ = ["comparison", "event_sentence", "events_of", "facts_table", "page", "steps_of", "summary", "table"]

"""A ds_config from anywhere, held to what DeepSpeed does with it: the schema, the rule table and their engine.

`check(text, context)` gives the findings; nothing here imports torch or DeepSpeed.
"""

from scaling.ds_config.check.engine import apply, check, read_object
from scaling.ds_config.check.mend import mended
from scaling.ds_config.check.outcome import Outcome, Severity
from scaling.ds_config.check.reader import Document, SyntaxProblem, spelt
from scaling.ds_config.check.rule import Context, Finding, Rule, Trainer
from scaling.ds_config.check.rules import RULES

__all__ = [
    "RULES", "Context", "Document", "Finding", "Outcome", "Rule", "Severity", "SyntaxProblem", "Trainer", "apply",
    "check", "mended", "read_object", "spelt",
]  # fmt: skip

"""The estimate held against measured runs: errors by row and by configuration, and what a fit would gain."""

from scaling.validate.fit import calibrated
from scaling.validate.runs import Run, Skipped, load
from scaling.validate.score import score

__all__ = ["Run", "Skipped", "calibrated", "load", "score"]

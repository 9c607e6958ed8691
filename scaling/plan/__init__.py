"""Choosing a strategy: the search, and the plan that it ends in."""

from scaling.plan.plan import TIE_FRACTION, Candidate, Plan, Rejection
from scaling.plan.search import search
from scaling.plan.steering import Steering, steering_of

__all__ = ["TIE_FRACTION", "Candidate", "Plan", "Rejection", "Steering", "search", "steering_of"]

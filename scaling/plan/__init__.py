"""Choosing a strategy: the search, and the plan that it ends in."""

from scaling.plan.plan import Candidate, Plan, Rejection
from scaling.plan.search import search

__all__ = ["Candidate", "Plan", "Rejection", "search"]

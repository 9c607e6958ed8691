"""Says at the end what was done to runs; that nothing was lost is what the tests say."""

from typing import Any

from tests.faults.lives import COUNTS


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if COUNTS:
        terminalreporter.section("faults")
        terminalreporter.line(", ".join(f"{name} {count}" for name, count in COUNTS.most_common()))

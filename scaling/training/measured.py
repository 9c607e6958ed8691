"""What a run measured, beside what its plan predicted."""

import json
from pathlib import Path

from rich.console import RenderableType

from scaling.files import write_folder
from scaling.report import comparison, table
from scaling.training.loop import Training


def write_measured(folder: Path, training: Training) -> RenderableType:
    """Writes `folder`/measured.json and returns the comparison as a table."""
    gauge = training.gauge
    measured = {
        "peak_allocated_bytes": {"value": gauge.peak_allocated_bytes, "predicted_in": "memory", "how": gauge.how},
        "tokens_per_second": {
            "value": training.tokens_per_second,
            "predicted_in": "time",
            "how": "median over steps from the third on, all ranks",
        },
    }
    write_folder(folder, {"measured.json": json.dumps(measured, indent=2) + "\n"}, "run_dir")
    return table(comparison(folder))

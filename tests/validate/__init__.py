"""Small tables of measured runs for the tests: one complete row, every field open to change."""

import csv
from pathlib import Path

import pytest

from scaling.validate.runs import COLUMNS

PUBLISHED = Path(__file__).resolve().parents[2].parent / "shared" / "ground_truth" / "measured_runs.csv"
needs_published = pytest.mark.skipif(not PUBLISHED.is_file(), reason=f"there is no published table at {PUBLISHED}")

# Llama-3-8B (meta-llama/Meta-Llama-3-8B, config.json) on a node of eight H100; the measurements are made up.
LLAMA_3_8B = {
    "model": "llama3-8b", "params": "8030261248", "layers": "32", "hidden": "4096", "heads": "32", "kv_heads": "8",
    "ffn": "14336", "vocab": "128256",
}  # fmt: skip
_ROW = {
    **LLAMA_3_8B, "id": "tt-1", "seq_len": "8192", "gpus": "8", "gpu_type": "H100-80GB", "gpu_mem_gib": "80",
    "precision": "bf16", "optimizer": "AdamW", "sharding": "fsdp2", "offload": "none", "tp": "1", "pp": "1",
    "sp_or_cp": "1", "micro_batch": "1", "grad_accum": "1", "act_ckpt": "full", "attention": "flash", "compile": "no",
    "measured_peak_gib": "40", "fits": "yes", "tokens_per_s_per_gpu": "6000", "notes": "",
}  # fmt: skip
# A GPT of Megatron-LM's functional tests: 12 layers of 512 (tests/functional_tests/test_cases/gpt).
MEGATRON = {
    "id": "mcore-1", "model": "gpt3-345m", "params": "", "layers": "12", "hidden": "512", "heads": "8", "kv_heads": "",
    "ffn": "2048", "vocab": "", "seq_len": "1024", "precision": "bf16", "optimizer": "Adam", "sharding": "ddp",
    "micro_batch": "4", "grad_accum": "32", "act_ckpt": "none", "notes": "",
}  # fmt: skip


def row(**changes):
    """The complete row with `changes`; a field may be called by any of the columns' names."""
    assert set(changes) <= set(COLUMNS)
    return {**_ROW, **changes}


def write_runs(path, *rows, columns=COLUMNS):
    """A table of `rows` at `path`."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns, extrasaction="ignore")
        table.writeheader()
        table.writerows(rows)
    return path

"""What the tests of data/ share: a recipe to vary, a small text file, the embedded corpus built once."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest

from scaling import data
from scaling.recipe import EMBEDDED_CORPUS, Recipe


def _recipe(model="gpt-demo", corpus=EMBEDDED_CORPUS, seed=7, **data_changes):
    names = corpus if isinstance(corpus, list) else [corpus]
    return Recipe(
        name="test",
        model=model,
        task="masked-lm" if model == "bert-demo" else "causal-lm",
        data={"corpus": names, "seq_length": 128, "validation_fraction": 0.05, **data_changes},
        global_batch_size=24,
        num_steps=10,
        optimizer={"name": "adamw", "lr": 1e-3, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1},
        schedule={"name": "cosine", "warmup_steps": 1},
        precision="fp32",
        gradient_clipping=1.0,
        seed=seed,
    )


@pytest.fixture(scope="session")
def recipe_of():
    """A function from what a test varies to a recipe."""
    return _recipe


@pytest.fixture
def text_file(tmp_path):
    """The name of a file in tmp_path of about 40 kB that no two lines of which are the same."""
    (tmp_path / "text.txt").write_text("\n".join(f"Line {i} says {i * i}, naïvely." for i in range(1500)))
    return "text.txt"


@pytest.fixture(scope="session")
def embedded(tmp_path_factory):
    """The docstring corpus with 2048 entries at sequence length 128, for a causal LM."""
    folder = tmp_path_factory.mktemp("embedded")
    return data.prepare(_recipe(), base=folder, cache=folder / "cache")

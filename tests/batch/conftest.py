"""Recipes as the papers had them."""

import pytest

from scaling import recipe


@pytest.fixture
def recipe_of():
    """A function from (model, batch, steps, optimizer fields, warm-up steps) to a recipe."""

    def of(model="bert-large", batch=32768, steps=15625, warmup=3125, **optimizer):
        optimizer = {"name": "lamb", "lr": 5e-3, "betas": [0.9, 0.999], "eps": 1e-6, "weight_decay": 0.01} | optimizer
        return recipe.validated(
            {
                "name": "published",
                "model": model,
                "task": "masked-lm" if model.startswith("bert") else "causal-lm",
                "data": {"corpus": [recipe.EMBEDDED_CORPUS], "seq_length": 128, "validation_fraction": 0.05},
                "global_batch_size": batch,
                "num_steps": steps,
                "optimizer": optimizer,
                "schedule": {"name": "linear", "warmup_steps": warmup},
                "precision": "bf16",
                "gradient_clipping": 1.0,
            }
        )

    return of

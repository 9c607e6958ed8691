"""LAMB in transformers' Trainer, with no glue: the optimizer's class and its arguments are all that it is told."""

from typing import Any

import numpy as np
import torch
from transformers import Trainer, TrainingArguments

from scaling.optim import Lamb
from tests.optim.runs import SEQ, Case, build
from tests.ranks import on_ranks

_STAGES: dict[str, dict[str, Any]] = {
    "stage 0": {"stage": 0},
    "stage 1": {"stage": 1},
    "stage 2, offload": {"stage": 2, "offload_optimizer": {"device": "cpu"}},
    "stage 3": {"stage": 3, "stage3_param_persistence_threshold": 100},
}


def _trained(folder: str) -> dict[str, Any]:
    import deepspeed

    from scaling.training import ranks

    ranks.join()
    generator = torch.Generator().manual_seed(1)
    samples = [torch.randint(151, (SEQ,), generator=generator) for _ in range(48)]
    out = {}
    for name, zero in _STAGES.items():
        model = build(Case(stage=0))
        before = model.transformer.wte.weight.detach().numpy().copy()
        arguments = TrainingArguments(
            output_dir=f"{folder}/{name}", use_cpu=True, max_steps=6, per_device_train_batch_size=4, report_to=[],
            learning_rate=4e-3, weight_decay=0.01, lr_scheduler_type="constant", max_grad_norm=0.0,
            save_strategy="no", disable_tqdm=True,
            deepspeed={
                "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 1, "gradient_clipping": 0.0,
                "zero_force_ds_cpu_optimizer": False, "zero_optimization": zero,
            },
        )  # fmt: skip
        trainer = Trainer(
            model=model, args=arguments, train_dataset=[{"input_ids": ids, "labels": ids} for ids in samples],
            optimizer_cls_and_kwargs=(Lamb, {"lr": 4e-3}),  # the arguments' weight_decay is what counts
        )  # fmt: skip
        trainer.train()
        engine = trainer.model_wrapped
        with deepspeed.zero.GatheredParameters(list(model.parameters()), enabled=zero["stage"] == 3):
            weights = {key: p.detach().numpy().copy() for key, p in model.named_parameters()}
        optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
        out[name] = (weights, type(optimizer).__name__, optimizer.trust_ratios.numpy())
        assert np.linalg.norm(weights["transformer.wte.weight"] - before) > 0.01
        engine.destroy()
    ranks.leave()
    return out


def test_the_trainer_trains_with_lamb_at_every_stage_bit_for_bit(tmp_path):
    by_stage = on_ranks(2, _trained, str(tmp_path))[0]
    expected, _, ratios = by_stage["stage 0"]
    assert np.unique(ratios).size > 5  # a ratio for each matrix
    for name, (weights, optimizer, its_ratios) in by_stage.items():
        assert optimizer == "Lamb"
        np.testing.assert_allclose(its_ratios, ratios, rtol=1e-12)
        for key, weight in weights.items():
            np.testing.assert_array_equal(weight, expected[key], err_msg=f"{name}: {key}")

"""Who puts values in the place of "auto" before DeepSpeed sees the file, and where.

Read off transformers 5.23 (integrations/deepspeed.py:HfTrainerDeepSpeedConfig) and accelerate 1.15
(utils/dataclasses.py:DeepSpeedPlugin, accelerator.py:_prepare_deepspeed); transformers' Trainer works through
accelerate, which refuses any "auto" that is left. tests/ds_config/check/test_trainers.py runs both.
"""

from scaling.ds_config.check.reader import Path

_ACCELERATE = frozenset({
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping",
    "fp16.enabled", "bf16.enabled",
    "zero_optimization.stage", "zero_optimization.offload_optimizer.device",
    "zero_optimization.offload_optimizer.nvme_path", "zero_optimization.offload_param.device",
    "zero_optimization.offload_param.nvme_path", "zero_optimization.stage3_gather_16bit_weights_on_model_save",
    "zero_optimization.reduce_bucket_size", "zero_optimization.stage3_prefetch_bucket_size",
    "zero_optimization.stage3_param_persistence_threshold",
    "optimizer.params.lr", "optimizer.params.weight_decay",
    "scheduler.params.warmup_min_lr", "scheduler.params.warmup_max_lr", "scheduler.params.warmup_num_steps",
    "scheduler.params.total_num_steps",
})  # fmt: skip

RESOLVED: dict[str, frozenset[str]] = {
    "none": frozenset(),
    "accelerate": _ACCELERATE,
    "hf": _ACCELERATE | {"optimizer.params.betas", "optimizer.params.eps"},
}


def resolves(trainer: str, path: Path) -> bool:
    return ".".join(map(str, path)) in RESOLVED[trainer]

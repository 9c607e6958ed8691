"""Scripts such as users have, on one rank of a test: what the emitted files make of accelerate and of the Trainer."""

import json
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DeepSpeedPlugin, DummyOptim, DummyScheduler, InitProcessGroupKwargs
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

from scaling.recipe import Recipe
from scaling.training import ranks

_SAMPLES = 96


def model_of(recipe: Recipe) -> GPT2LMHeadModel:
    """As transformers builds it, which shards it where stage 3 was announced."""
    shape = recipe.shape
    config = GPT2Config(
        vocab_size=shape.vocab_size, n_positions=shape.max_position_embeddings, n_embd=shape.hidden_size,
        n_layer=shape.num_layers, n_head=shape.num_attention_heads, n_inner=shape.intermediate_size, use_cache=False,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return GPT2LMHeadModel._from_config(config)


def samples_of(recipe: Recipe) -> list[dict[str, torch.Tensor]]:
    """Each begins with its own number."""
    made = []
    for number in range(_SAMPLES):
        tokens = torch.randint(
            recipe.shape.vocab_size, (recipe.data.seq_length,), generator=torch.Generator().manual_seed(number)
        )
        tokens[0] = number
        made.append({"input_ids": tokens, "labels": tokens})
    return made


def through_the_trainer(arguments: str, recipe: Recipe, changes: dict[str, Any]) -> dict[str, Any]:
    """`changes` are arguments that only a test has: where to stop, nothing to report to."""
    ranks.join()
    with open(arguments) as file:
        made = TrainingArguments(**json.load(file) | changes)
    rates: list[float] = []

    class Watch(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            rates.append(trainer.model_wrapped.optimizer.param_groups[0]["lr"])

    model = model_of(recipe)
    sharded_when_built = getattr(next(model.parameters()), "ds_id", None) is not None
    trainer = Trainer(model=model, args=made, train_dataset=samples_of(recipe), callbacks=[Watch()])
    seen = _samples_seen(model)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return _facts(trainer.model_wrapped, trainer.accelerator) | {
        "rates": rates, "samples": seen, "losses": losses, "sharded_when_built": sharded_when_built,
        "checkpointing": model.is_gradient_checkpointing,
    }  # fmt: skip


def through_accelerate(config: str, recipe: Recipe, num_steps: int, own_optimizer: bool) -> dict[str, Any]:
    """As its notes say; with an optimizer of its own the two blocks are taken out of the ds_config."""
    ranks.join()
    deepspeed = load_config_from_file(config).deepspeed_config
    with open(deepspeed["deepspeed_config_file"]) as file:
        ds_config = json.load(file)
    if own_optimizer:
        ds_config = {key: value for key, value in ds_config.items() if key not in ("optimizer", "scheduler")}
    accelerator = Accelerator(
        deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=ds_config, zero3_init_flag=deepspeed["zero3_init_flag"]),
        kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")],
    )
    model = model_of(recipe)
    sharded_when_built = getattr(next(model.parameters()), "ds_id", None) is not None
    groups = _groups(model, recipe.optimizer.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=0.25) if own_optimizer else DummyOptim(groups)
    scheduler = None if own_optimizer else DummyScheduler(optimizer)
    batches = DataLoader(samples_of(recipe), batch_size=ds_config["train_micro_batch_size_per_gpu"])
    seen = _samples_seen(model)
    ready = accelerator.prepare(model, optimizer, batches, *([scheduler] if scheduler else []))
    engine, optimizer, batches = ready[:3]
    rates, losses = [], []
    for batch in batches:
        with accelerator.accumulate(engine):
            loss = engine(**batch).loss
            rate = engine.optimizer.param_groups[0]["lr"]
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            rates.append(rate)
            losses.append(loss.item())
        if engine.global_steps == num_steps:
            break
    return _facts(engine, accelerator) | {
        "rates": rates, "samples": seen, "losses": losses, "sharded_when_built": sharded_when_built,
    }  # fmt: skip


def _groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """By name: at stage 3 every parameter is an empty vector here."""
    parts: dict[bool, list[torch.nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        parts[name.endswith("bias") or ".ln_" in name].append(parameter)
    return [{"params": parts[False], "weight_decay": weight_decay}, {"params": parts[True], "weight_decay": 0.0}]


def _samples_seen(model: torch.nn.Module) -> list[int]:
    seen: list[int] = []

    def look(_: Any, __: Any, inputs: dict[str, Any]) -> None:
        seen.extend(inputs["input_ids"][:, 0].tolist())

    model.register_forward_pre_hook(look, with_kwargs=True)
    return seen


def _facts(engine: Any, accelerator: Any) -> dict[str, Any]:
    optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)  # at stage 0 nothing is around it
    return {
        "world_size": accelerator.num_processes,
        "distributed_type": accelerator.distributed_type.value,
        "precision": accelerator.mixed_precision,
        "steps": engine.global_steps,
        "batch": engine.train_batch_size(),
        "micro_batch": engine.train_micro_batch_size_per_gpu(),
        "accumulation": engine.gradient_accumulation_steps(),
        "zero_stage": engine.zero_optimization_stage(),
        "clipping": engine.gradient_clipping(),
        "optimizer": f"{type(optimizer).__module__}.{type(optimizer).__name__}",
        "groups": [
            {name: group[name] for name in ("betas", "eps", "weight_decay", "fused") if name in group}
            for group in optimizer.param_groups
        ],
    }

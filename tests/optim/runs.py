"""Twenty steps of a tiny model: on real DeepSpeed ranks with our optimizers, and in one process by the papers."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import T5Config, T5ForConditionalGeneration

from scaling import models
from scaling.optim import Lamb
from scaling.shape import Shape
from tests.optim.papers import Moments, lamb, trained_by_the_paper
from tests.ranks import on_ranks

STEPS = 20
BATCH, SEQ = 12, 16
_SIZES = {
    "num_layers": 2,
    "hidden_size": 36,
    "num_attention_heads": 3,
    "intermediate_size": 140,
    "vocab_size": 151,
    "max_position_embeddings": SEQ,
}  # fmt: skip  sizes that neither two nor three ranks divide
SHAPES = {family: Shape(name="tiny", family=family, **_SIZES) for family in ("gpt2", "bert")}
# Wide enough for NVMe, where DeepSpeed moves nothing smaller than 1 MiB, and in shards that are whole blocks, or not.
SHAPES["wide"] = replace(
    SHAPES["gpt2"], hidden_size=512, num_attention_heads=4, num_key_value_heads=4, intermediate_size=2050
)
SHAPES["wide, odd"] = replace(SHAPES["gpt2"], hidden_size=510, intermediate_size=2048)
LAMB = {"lr": 4e-3, "weight_decay": 0.01}
LARS = {"lr": 4.0, "weight_decay": 0.01, "trust_coefficient": 0.001}
# A GPT's key biases have no gradient but rounding, which LANS and a small eps would make steps of.
LANS = {"lr": 4e-3, "weight_decay": 0.01, "eps": 1e-3}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A way to run. `zero` is DeepSpeed's zero_optimization beside the stage; `groups` 2: decay and no decay apart.

    `loss_scale` is fp16's: fixed, or what a dynamic one starts from. Not `attached`: the optimizer finds out itself.
    """

    stage: int
    family: str = "gpt2"
    precision: str = "fp32"
    zero: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    make: type = Lamb
    arguments: dict[str, Any] = field(default_factory=lambda: dict(LAMB))
    groups: int = 2
    frozen: tuple[str, ...] = ()
    accumulation: int = 1
    dirty: bool = False
    attached: bool = True
    loss_scale: int = 0
    dynamic: bool = False

    @property
    def precision_config(self) -> dict[str, Any]:
        if self.precision == "fp32":
            return {}
        scaling = {"loss_scale": 0 if self.dynamic else self.loss_scale, "hysteresis": 1, "loss_scale_window": 1000}
        scaling["initial_scale_power"] = self.loss_scale.bit_length() - 1
        return {self.precision: {"enabled": True, **(scaling if self.precision == "fp16" else {})}}


@dataclass(kw_only=True)
class Outcome:
    """`spoiled` are the elements of padding, over all ranks, that were made NaN; `skipped` steps overflowed."""

    weights: dict[str, np.ndarray]
    all_reduces: int
    skipped: int
    wrapper: str
    spoiled: int


def batch(step: int) -> torch.Tensor:
    return torch.randint(0, 151, (BATCH, SEQ), generator=torch.Generator().manual_seed(step))


def build(case: Case) -> torch.nn.Module:
    """The model as if it had trained for a while: biases of a size of their own instead of zero."""
    model = _encoder_decoder() if case.family == "t5" else models.build(SHAPES[case.family], seed=5)
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not (case.frozen and name.endswith(case.frozen)))
        if parameter.ndim < 2:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def _encoder_decoder() -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        sizes = {"d_model": 36, "d_kv": 12, "d_ff": 140, "num_layers": 2, "num_heads": 3, "vocab_size": 151}
        config = T5Config(**sizes, dropout_rate=0.0, use_cache=False, relative_attention_num_buckets=7)
        return T5ForConditionalGeneration(config)


class Summed(torch.nn.Module):
    """A model and its summed cross-entropy over ids that it is to repeat; T5 has them on both sides."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        both = {"decoder_input_ids": ids} if isinstance(self.model, T5ForConditionalGeneration) else {}
        logits = self.model(input_ids=ids, **both).logits.flatten(0, 1)
        wide = logits if logits.dtype == torch.float64 else logits.float()
        return F.cross_entropy(wide, ids.flatten(), reduction="sum")


def grouped(case: Case, named: dict[str, torch.Tensor], dims: Callable[[torch.Tensor], int]) -> dict[str, Any]:
    """The constructor's arguments: parameters, decaying matrices apart or named as excluded."""
    matrices = [p for p in named.values() if dims(p) >= 2]
    rest = [p for p in named.values() if dims(p) < 2]
    if case.groups == 1:
        return {"params": list(named.values()), "exclude": rest}
    return {"params": [{"params": matrices}, {"params": rest, "weight_decay": 0.0}]}


def on_engines(world_size: int, cases: dict[str, Case]) -> dict[str, Outcome]:
    """Every case after the other on one set of ranks; the weights that the first rank has."""
    by_rank = on_ranks(world_size, _engines, cases)
    for name, outcome in by_rank[0].items():
        outcome.spoiled = sum(rank[name].spoiled for rank in by_rank)
    return by_rank[0]


def _engines(cases: dict[str, Case]) -> dict[str, Outcome]:
    from scaling.training import ranks

    here = ranks.join()
    if any(case.precision == "fp16" for case in cases.values()):
        from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

        CPU_Accelerator.is_fp16_supported = lambda self: True  # slow here, and right
    try:
        return {name: _engine(case, here) for name, case in cases.items()}
    finally:
        ranks.leave()


def _engine(case: Case, here: Any) -> Outcome:
    import deepspeed

    model = Summed(build(case))
    named = dict(model.named_parameters())
    optimizer = case.make(**grouped(case, named, lambda p: p.ndim), **case.arguments)
    micro = BATCH // (here.world_size * case.accumulation)
    config = {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": case.accumulation,
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": False,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": case.stage, "reduce_bucket_size": 20_000, "allgather_bucket_size": 20_000,
            "round_robin_gradients": False, "stage3_param_persistence_threshold": 100, **case.zero,
        },
        "steps_per_print": 2**31 - 1,
        **case.precision_config,
        **case.config,
    }  # fmt: skip
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    if hasattr(optimizer, "attach") and case.attached:
        optimizer.attach(engine)
    spoiled = _spoil_padding(engine) if case.dirty else 0
    counted = counted_all_reduces(optimizer)
    for step in range(STEPS):
        rows = batch(step).split(micro)
        for part in range(case.accumulation):
            ids = rows[part * here.world_size + here.rank]
            loss = engine(ids) * here.world_size / (BATCH * SEQ)
            if case.precision == "fp16" and case.stage == 0:
                # DeepSpeed 0.19.8 divides gradients by a loss scale that it never multiplied the loss by there.
                loss = loss * engine.optimizer.loss_scale
            engine.backward(loss, scale_wrt_gas=False)
            engine.step()
    with deepspeed.zero.GatheredParameters(list(named.values()), enabled=case.stage == 3):
        weights = {name.removeprefix("model."): p.detach().float().numpy().copy() for name, p in named.items()}
    wrapper, skipped = type(engine.optimizer).__name__, engine.skipped_steps
    engine.destroy()
    return Outcome(weights=weights, all_reduces=counted(), skipped=skipped, wrapper=wrapper, spoiled=spoiled)


def _spoil_padding(engine: Any) -> int:
    """Writes NaN wherever a master copy has no parameter's element; how many those are."""
    spoiled = 0
    for vector in engine.optimizer.optimizer._layout.vectors.values():
        padding = torch.ones(vector.master.numel(), dtype=torch.bool)
        for piece in vector.pieces:
            padding[piece.start : piece.stop] = False
        vector.master.data[padding] = float("nan")
        spoiled += int(padding.sum())
    return spoiled


def counted_all_reduces(optimizer: Any) -> Callable[[], int]:
    """Counts every all-reduce from within optimizer.step."""
    seen, step, all_reduce = [], optimizer.step, torch.distributed.all_reduce

    def counting(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(tuple(tensor.shape))
        return all_reduce(tensor, *args, **kwargs)

    def counted_step(*args: Any, **kwargs: Any) -> Any:
        torch.distributed.all_reduce = counting
        try:
            return step(*args, **kwargs)
        finally:
            torch.distributed.all_reduce = all_reduce

    optimizer.step = counted_step
    return lambda: len(seen)


def in_one_process(case: Case, world_size: int) -> dict[str, np.ndarray]:
    """The optimizer on whole tensors in plain torch: 16-bit weights, fp32 masters, gradients averaged as by DeepSpeed.

    That is divided before they are summed, at stage 0 after, which tells where fp16 is at its end. With as many threads
    as a rank has, since the sums of a bf16 matmul depend on it. Steps whose gradients overflow are left out, and halve
    a dynamic loss scale.
    """
    before, after = (world_size, 1) if case.stage else (1, world_size)
    model = Summed(build(case)).to({"bf16": torch.bfloat16, "fp16": torch.float16}[case.precision])
    named = dict(model.named_parameters())
    masters = {name: p.detach().float() for name, p in named.items()}
    optimizer = case.make(**grouped(case, masters, lambda p: p.ndim), **case.arguments)
    loss_scale = float(case.loss_scale or 1)
    for step in range(STEPS):
        sums = {name: torch.zeros_like(p) for name, p in named.items()}
        for ids in batch(step).split(BATCH // world_size):
            model.zero_grad()
            (model(ids) * world_size / (BATCH * SEQ) * loss_scale).backward()
            for name, p in named.items():
                sums[name] += p.grad / before
        sums = {name: total / after for name, total in sums.items()}
        if not all(total.isfinite().all() for total in sums.values()):
            loss_scale /= 2
            continue
        for name, master in masters.items():
            master.grad = sums[name].float() / loss_scale
        optimizer.step()
        with torch.no_grad():
            for name, p in named.items():
                p.copy_(masters[name])
    return {name.removeprefix("model."): p.detach().float().numpy() for name, p in named.items()}


def by_the_paper(case: Case) -> dict[str, np.ndarray]:
    """The whole run in float64 in one process; computed once for cases that differ in machinery only."""
    mathematics = str((case.family, case.make.__name__, case.arguments, case.frozen, case.config))
    if mathematics not in _papers:
        weights = trained_by_the_paper(
            build(case), _loss, STEPS, Lamb if case.make is NaiveLamb else case.make, case.arguments,
            clip=case.config.get("gradient_clipping", 0.0),
        )  # fmt: skip
        _papers[mathematics] = {name: weight.numpy() for name, weight in weights.items()}
    return _papers[mathematics]


_papers: dict[str, dict[str, np.ndarray]] = {}


def _loss(model: torch.nn.Module, step: int) -> torch.Tensor:
    return Summed(model)(batch(step)) / (BATCH * SEQ)


class NaiveLamb(torch.optim.Optimizer):
    """LAMB of whatever tensors it is handed, as most implementations are."""

    def __init__(self, params: Any, **arguments: Any) -> None:
        super().__init__(params, arguments)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                state.setdefault("kept", Moments(p))
                state["t"] = state.get("t", 0) + 1
                decay = group["weight_decay"]
                lamb(p, p.grad, state["kept"], state["t"], lr=group["lr"], weight_decay=decay, decays=decay > 0)


def difference(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> float:
    """The largest relative difference of any tensor, |a - b| / |b| in the Frobenius norm."""
    assert ours.keys() == theirs.keys()
    return max(float(np.linalg.norm(ours[n] - theirs[n]) / np.linalg.norm(theirs[n])) for n in theirs)

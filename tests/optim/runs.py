"""Twenty steps of a tiny model: on real DeepSpeed ranks with our optimizers, and in one process by the papers."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from scaling import models
from scaling.optim import Lamb, Lars
from scaling.shape import Shape
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
LAMB = {"lr": 4e-3, "weight_decay": 0.01}
LARS = {"lr": 4.0, "weight_decay": 0.01, "trust_coefficient": 0.001}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A way to run. `zero` is DeepSpeed's zero_optimization beside the stage; `groups` 2: decay and no decay apart."""

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


@dataclass(kw_only=True)
class Outcome:
    """`spoiled` are the elements of padding, over all ranks, that were made NaN."""

    weights: dict[str, np.ndarray]
    all_reduces: int
    wrapper: str
    spoiled: int


def batch(step: int) -> torch.Tensor:
    return torch.randint(0, 151, (BATCH, SEQ), generator=torch.Generator().manual_seed(step))


def build(case: Case) -> torch.nn.Module:
    """The model as if it had trained for a while: biases of a size of their own instead of zero."""
    model = models.build(SHAPES[case.family], seed=5)
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not (case.frozen and name.endswith(case.frozen)))
        if parameter.ndim < 2:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


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
    try:
        return {name: _engine(case, here) for name, case in cases.items()}
    finally:
        ranks.leave()


def _engine(case: Case, here: Any) -> Outcome:
    import deepspeed

    from scaling.optim import layout

    model = models.WithLoss(build(case))
    named = dict(model.named_parameters())
    optimizer = case.make(**grouped(case, named, lambda p: p.ndim), **case.arguments)
    if hasattr(optimizer, "attach"):
        layout.allow_under_zero(type(optimizer))
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
        **({"bf16": {"enabled": True}} if case.precision == "bf16" else {}),
        **case.config,
    }  # fmt: skip
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    if hasattr(optimizer, "attach"):
        optimizer.attach(engine)
    spoiled = _spoil_padding(engine) if case.dirty else 0
    counted = _counted_all_reduces(optimizer)
    for step in range(STEPS):
        rows = batch(step).split(micro)
        for part in range(case.accumulation):
            ids = rows[part * here.world_size + here.rank]
            engine.backward(engine(ids, ids) * here.world_size / (BATCH * SEQ), scale_wrt_gas=False)
            engine.step()
    with deepspeed.zero.GatheredParameters(list(named.values()), enabled=case.stage == 3):
        weights = {name.removeprefix("model."): p.detach().float().numpy().copy() for name, p in named.items()}
    wrapper = type(engine.optimizer).__name__
    engine.destroy()
    return Outcome(weights=weights, all_reduces=counted(), wrapper=wrapper, spoiled=spoiled)


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


def _counted_all_reduces(optimizer: Any) -> Callable[[], int]:
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
    """The optimizer on whole tensors in plain torch: bf16 weights, fp32 masters, gradients averaged in bf16 as by ZeRO.

    With as many threads as a rank has, since the sums of a bf16 matmul depend on it.
    """
    model = models.WithLoss(build(case)).bfloat16()
    named = dict(model.named_parameters())
    masters = {name: p.detach().float() for name, p in named.items()}
    optimizer = case.make(**grouped(case, masters, lambda p: p.ndim), **case.arguments)
    for step in range(STEPS):
        sums = {name: torch.zeros_like(p) for name, p in named.items()}
        for ids in batch(step).split(BATCH // world_size):
            model.zero_grad()
            (model(ids, ids) * world_size / (BATCH * SEQ)).backward()
            for name, p in named.items():
                sums[name] += p.grad / world_size
        for name, master in masters.items():
            master.grad = sums[name].float()
        optimizer.step()
        with torch.no_grad():
            for name, p in named.items():
                p.copy_(masters[name])
    return {name.removeprefix("model."): p.detach().float().numpy() for name, p in named.items()}


def by_the_paper(case: Case) -> dict[str, np.ndarray]:
    """The whole run in float64 in one process: model, gradients and optimizer, each formula as printed.

    Computed once for cases that differ in machinery only.
    """
    mathematics = str((case.family, case.make is Lars, case.arguments, case.frozen, case.config))
    if mathematics not in _papers:
        _papers[mathematics] = _by_the_paper(case)
    return _papers[mathematics]


_papers: dict[str, dict[str, np.ndarray]] = {}


def _by_the_paper(case: Case) -> dict[str, np.ndarray]:
    model = build(case).double()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    rule = _lars if case.make is Lars else _lamb
    moments: dict[str, list[torch.Tensor]] = {n: [torch.zeros_like(p), torch.zeros_like(p)] for n, p in trained.items()}
    clip = case.config.get("gradient_clipping", 0.0)
    for step in range(STEPS):
        ids = batch(step)
        model.zero_grad()
        F.cross_entropy(model(input_ids=ids).logits.flatten(0, 1), ids.flatten()).backward()
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in trained.values()))
        scale = clip / (norm + 1e-6) if clip and norm > clip else 1.0
        if case.arguments.get("normalize_gradients"):
            scale = 1 / norm
        with torch.no_grad():
            for name, p in trained.items():
                rule(p, p.grad * scale, moments[name], step + 1, **{**case.arguments, "decays": p.ndim >= 2})
    return {name: p.detach().numpy() for name, p in model.named_parameters()}


def _lamb(
    x: torch.Tensor, g: torch.Tensor, moments: list[torch.Tensor], t: int, *, lr: float, weight_decay: float,
    decays: bool, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-6, bias_correction: str = "moments",
    trust_clip: tuple[float, float] | None = None, always_adapt: bool = False, normalize_gradients: bool = False,
) -> None:  # fmt: skip
    """You et al. 2020, algorithm 2."""
    (m, v), (b1, b2) = moments, betas
    m.copy_(b1 * m + (1 - b1) * g)
    v.copy_(b2 * v + (1 - b2) * g * g)
    correct = bias_correction == "moments"
    r = (m / (1 - b1**t) if correct else m) / ((v / (1 - b2**t) if correct else v).sqrt() + eps)
    u = r + weight_decay * x if decays else r
    ratio = 1.0
    if (decays or always_adapt) and float(x.norm()) > 0 and float(u.norm()) > 0:
        ratio = float(x.norm() / u.norm())
    if (decays or always_adapt) and trust_clip:
        ratio = min(max(ratio, trust_clip[0]), trust_clip[1])
    length = math.sqrt(1 - b2**t) / (1 - b1**t) if bias_correction == "step" else 1.0
    x -= lr * length * ratio * u


def _lars(
    w: torch.Tensor, g: torch.Tensor, moments: list[torch.Tensor], t: int, *, lr: float, weight_decay: float,
    decays: bool, trust_coefficient: float, momentum: float = 0.9,
) -> None:  # fmt: skip
    """You, Gitman & Ginsburg 2017, algorithm 1."""
    beta = weight_decay if decays else 0.0
    rate = lr * trust_coefficient * w.norm() / (g.norm() + beta * w.norm()) if decays else lr
    moments[0].copy_(momentum * moments[0] + rate * (g + beta * w))
    w -= moments[0]


class NaiveLamb(torch.optim.Optimizer):
    """LAMB of whatever tensors it is handed, as most implementations are."""

    def __init__(self, params: Any, **arguments: Any) -> None:
        super().__init__(params, arguments)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                state.setdefault("moments", [torch.zeros_like(p), torch.zeros_like(p)])
                state["t"] = state.get("t", 0) + 1
                decay = group["weight_decay"]
                _lamb(p, p.grad, state["moments"], state["t"], lr=group["lr"], weight_decay=decay, decays=decay > 0)


def difference(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> float:
    """The largest relative difference of any tensor, |a - b| / |b| in the Frobenius norm."""
    assert ours.keys() == theirs.keys()
    return max(float(np.linalg.norm(ours[n] - theirs[n]) / np.linalg.norm(theirs[n])) for n in theirs)

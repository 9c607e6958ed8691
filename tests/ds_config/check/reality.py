"""The real thing, for a test to ask: DeepSpeedConfig here, engines on forked gloo ranks, many cases in one launch."""

import copy
import importlib
import json
import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.utils import groups

from scaling.training import ranks as process_group

# What a case does with the engine of its configuration, after initialize() and before a step; its answer is kept.
Probe = Callable[[Any], Any]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A configuration that a rule calls wrong, and what DeepSpeed is seen to do with it.

    Either it raises `raises` with `says` in its text, or `shows` asks the parsed configuration (or the engine) for the
    fact that the rule states. `how` names what is run: "config", "engine" (initialize), "step" (and one training
    step), or a function of this module's kind that takes the configuration.
    """

    rule: str
    config: dict[str, Any] | str  # a string is a file's text
    how: str | Callable[[Any], Any] = "config"
    raises: str = ""  # the exception's class
    says: str = ""
    shows: Probe | None = None
    ranks: int = 1
    context: dict[str, Any] = field(default_factory=dict)  # for `scale check`
    script: str = ""  # an optimizer that the script passes
    mended: dict[str, Any] | str | None = None  # the same, right: no finding of the rule
    id: str = ""

    @property
    def name(self) -> str:
        return self.rule + (f" {self.id}" if self.id else "")


def outcome(case: Case) -> tuple[str, Any]:
    """(exception class, text), or ("", what `shows` says)."""
    try:
        return "", _run(case)
    except Exception as error:
        return type(error).__name__, str(error)


def _run(case: Case) -> Any:
    config = copy.deepcopy(case.config)
    if callable(case.how):
        got = case.how(config)
    elif case.how == "config":
        got = _parse(config)
    else:
        got = engine_of(config, script=case.script)
        if case.how == "step":
            step(got)
    return case.shows(got) if case.shows else None


def _parse(config: dict[str, Any] | str) -> Any:
    if isinstance(config, dict):
        return DeepSpeedConfig(config)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ds_config.json"
        path.write_text(config)
        return DeepSpeedConfig(str(path))


def model() -> Any:
    """Two matrices and two vectors; the width lets a norm above 1 arise."""
    torch.manual_seed(7)
    return torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 4))


def engine_of(config: Any, *, script: str = "", module: Any = None) -> Any:
    module = module or model()
    optimizer = None
    if script:
        made: Any = {
            "lamb": WholeTensorOptimizer, "adamw": torch.optim.AdamW, "muon": torch.optim.Muon, "sgd": torch.optim.SGD,
        }[script]  # fmt: skip
        optimizer = made([p for p in module.parameters() if script != "muon" or p.ndim == 2], lr=1e-3)
    engine, *_ = deepspeed.initialize(
        model=module, model_parameters=list(module.parameters()), config=config, optimizer=optimizer
    )
    return engine


class WholeTensorOptimizer(torch.optim.SGD):
    """Stands for LAMB: knows how many tensors it is given, of each of which LAMB takes norms."""

    def tensors(self) -> int:
        return sum(len(group["params"]) for group in self.param_groups)


def step(engine: Any, scale: float = 1.0) -> None:
    dtype = next(engine.module.parameters()).dtype
    torch.manual_seed(3)
    loss = engine(torch.randn(2, 8).to(dtype)).float().pow(2).mean() * scale
    engine.backward(loss)
    engine.step()


def join() -> None:
    """This rank's process group, with an accelerator that says yes to fp16, which this CPU may not have."""
    process_group.join()
    logging.disable(logging.CRITICAL)
    get_accelerator().is_fp16_supported = lambda: True


def outcomes(module: str, num_ranks: int) -> dict[str, tuple[str, Any]]:
    """On one of `num_ranks` ranks: the outcome of every case in `module`.CASES that is for so many, by name."""
    join()
    found = {}
    for case in importlib.import_module(module).CASES:
        if case.ranks == num_ranks and case.how != "config":
            found[case.name] = outcome(case)
            _forget_groups()
    return found


# What DeepSpeed's module of groups holds before the first engine; it keeps those of each for the next.
_NO_GROUPS = {
    name: copy.copy(value) for name, value in vars(groups).items() if name in ("mesh_device", "mpu") or name.isupper()
}


def _forget_groups() -> None:
    for name, value in _NO_GROUPS.items():
        setattr(groups, name, copy.copy(value))


def text(config: dict[str, Any] | str) -> str:
    return config if isinstance(config, str) else json.dumps(config, indent=2)

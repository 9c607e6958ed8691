"""Training on a pipeline of stages, by DeepSpeed's PipelineEngine (0.19.8, runtime/pipe/engine.py) and its 1F1B.

The engine takes a batch, steps and averages the loss in one call. Here its schedule runs up to the summed gradients,
because guards judge a step before it is taken, batches and samples grow, and the loss is a sum over targets. Each
instruction is the engine's own, apart from those in the table of `Pipelined`.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.pipe import PipelineModule
from deepspeed.runtime.pipe import schedule
from deepspeed.runtime.pipe.engine import PipelineEngine
from torch import Tensor, nn
from transformers import PreTrainedModel

from scaling.cost.job import Job
from scaling.cost.stages import layers_of_stages
from scaling.data import count_targets
from scaling.models.stages import Stage
from scaling.recipe import Recipe
from scaling.strategy import Strategy
from scaling.training.ranks import place_of

Batch = dict[str, Tensor]


def is_pipelined(engine: Any) -> bool:
    return isinstance(engine, PipelineEngine)


def named_parameters(engine: Any) -> dict[str, nn.Parameter]:
    """Those that are trained on this rank, by their names in the whole model: PipelineModule numbers its stages."""
    return {re.sub(r"^\d+\.", "", name): p for name, p in engine.module.named_parameters() if p.requires_grad}


def is_copy(parameter: Tensor) -> bool:
    """Whether another stage's parameter is the same, and counts."""
    return bool(getattr(parameter, "ds_pipe_replicated", False))


def stage_of(model: PreTrainedModel, recipe: Recipe, strategy: Strategy) -> PipelineModule:
    """This rank's stage of the recipe's whole `model`, which is cut to it; a collective.

    So the weights are those of a run on one rank. DeepSpeed is given one module a stage: it has no layers to part.
    """
    size, number = strategy.pipeline_parallel_size, place_of(dist.get_rank(), strategy).pipeline
    share = layers_of_stages(Job.of(recipe), size)[number]
    stage = Stage(model, share.start, share.stop, loss_kernel=strategy.loss_kernel)
    modules = [stage if other == number else nn.Identity() for other in range(size)]
    pipeline = PipelineModule(modules, num_stages=size, partition_method="uniform")
    pipeline.has_shared_weights = recipe.shape.tied_embeddings
    for parameter in stage.shared:
        parameter.ds_pipe_replicated = stage.is_last  # by which DeepSpeed's norms count it once
    return pipeline


class Pipelined:
    """How a pipeline makes the gradients of a global batch, and evaluates.

    `begins` is called with the first sample's number as a micro batch's forward begins; `ends`, as its backward has
    ended, with its targets, and what it returns is summed; `laps` takes the time of a part.
    """

    def __init__(
        self, engine: Any, begins: Callable[[int], None], ends: Callable[[Tensor], Tensor], laps: Callable[[str], None]
    ) -> None:
        self.engine, self.begins, self.ends, self.laps = engine, begins, ends, laps
        (self.stage,) = (module for module in engine.module.children() if isinstance(module, Stage))
        self.both_ends = _both_ends(engine)
        self.given: torch.Size | None = None  # the shape of inputs that buffers are made for
        engine._INSTRUCTION_MAP = {
            **PipelineEngine._INSTRUCTION_MAP,
            schedule.ForwardPass: self._forward,
            schedule.BackwardPass: self._backward,
            schedule.ReduceTiedGrads: self._add_up_shared,
            schedule.OptimizerStep: _left_to_the_loop,
        }

    def accumulate(
        self, micro_batches: Sequence[tuple[int, Batch]], scale: Tensor, before_last: Callable[[], Any]
    ) -> Tensor:
        """Makes the gradient of the loss times `scale` over all ranks' micro batches: this rank's summed loss (of the
        last stage alone), and the sum of what `ends` returned.

        `before_last` is called before the last micro batch's forward.
        """
        engine = self.engine
        # Of which the engine divides by the second (0.19.8, runtime/engine.py:3413).
        self.scale = scale * engine.gradient_accumulation_steps()
        self.before_last, self.ended = before_last, torch.zeros_like(scale)
        engine.micro_batches = len(micro_batches)
        self._run(engine._train_schedule(), micro_batches)
        loss = torch.stack(engine.fwd_outputs).sum() if self.stage.is_last else torch.zeros_like(scale)
        return torch.stack([loss, self.ended])

    def evaluate(self, batch: Batch) -> Tensor:
        """[summed loss, targets] of a batch on the last stage, zeros on the others."""
        self._run(self.engine._inference_schedule(1), [(0, batch)])
        if not self.stage.is_last:
            return torch.zeros(2, dtype=torch.float64, device=self.engine.device)
        (loss,) = self.engine.fwd_outputs
        return torch.stack([loss.double(), count_targets(batch).double()])

    def _run(self, instructions: Any, micro_batches: Sequence[tuple[int, Batch]]) -> None:
        self.forwards, self.backwards = list(micro_batches), list(micro_batches)
        pairs = []
        for _, batch in micro_batches:
            (inputs,) = (tensor for name, tensor in batch.items() if name != "labels")
            pairs.append((inputs, batch["labels"]))
        if inputs.shape != self.given:
            self.engine.reset_activation_shape()
            self.given = inputs.shape
        self.engine._compute_loss = True
        self.engine.set_dataiterator(iter(pairs))
        self.engine._exec_schedule(instructions)

    # Instructions, in the order of micro batches; the engine is handed over with each.

    def _forward(self, engine: Any, buffer_id: int) -> None:
        first_sample, batch = self.forwards.pop(0)
        self.stage.labels = batch["labels"]
        if self.stage.training:
            if not self.forwards:
                self.before_last()
            self.begins(first_sample)
        self.laps("rest")
        PipelineEngine._exec_forward_pass(engine, buffer_id)
        if self.stage.training and self.stage.is_last:
            engine.loss = engine.loss * self.scale
        self.laps("forward")

    def _backward(self, engine: Any, buffer_id: int) -> None:
        _, batch = self.backwards.pop(0)
        self.laps("rest")
        PipelineEngine._exec_backward_pass(engine, buffer_id)
        self.laps("backward")
        self.ended += self.ends(count_targets(batch))

    def _add_up_shared(self, engine: Any) -> None:
        """The gradient of the weight that is embedding and head, each of which has its part."""
        for parameter in self.stage.shared:
            dist.all_reduce(_gradient(engine, parameter), group=self.both_ends)


def _left_to_the_loop(engine: Any) -> None:
    """In the place of the optimizer's step."""


def _both_ends(engine: Any) -> Any:
    """The group of the first and the last stage's ranks that have the same samples; None between them."""
    mine = None
    for data in range(engine.grid.data_parallel_size):
        ranks = [engine.grid.stage_to_global(stage_id=stage, data=data) for stage in (0, engine.num_stages - 1)]
        group = dist.new_group(ranks)
        if dist.get_rank() in ranks:
            mine = group
    return mine


def _gradient(engine: Any, parameter: Tensor) -> Tensor:
    """What has been summed over micro batches, wherever the wrapper keeps it (0.19.8, zero/stage_1_and_2.py:1247,
    bf16_optimizer.py). The engine's own reduction of tied weights knows but two of the three.
    """
    if engine.using_bf16_optimizer:
        return parameter._hp_grad
    if hasattr(engine.optimizer, "get_gradient_for_reduction"):
        return engine.optimizer.get_gradient_for_reduction(parameter)
    return parameter.grad

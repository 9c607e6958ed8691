"""What LAMB, LARS and LANS share: steps scaled by norms of whole tensors, wherever their elements are.

The step of some vectors is a generator: it yields sums of squares over the pieces that this rank has, is sent those of
the whole tensors, and moves the weights. All go in lockstep, so that LAMB and LARS take one all-reduce a step. ZeRO
calls step() once per group of parameters (stage 3: per sub-group); what follows the all-reduce waits for the last one.
Squares are summed in fp64: how a tensor is cut then does not show in its ratio, and torch's fp32 norm on a CPU, a
running sum, is off by 3.6e-3 for a vocabulary of 30,522 x 768.
"""

import contextlib
import sys
import warnings
from collections.abc import Callable, Collection, Generator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scaling.errors import ScaleError
from scaling.optim import layout
from scaling.optim.kernels.rows import squared_norms
from scaling.optim.layout import Layout, Vector

Sweeps = Generator[Tensor, Tensor, None]


class _Going(NamedTuple):
    """Vectors in the middle of their step, and the sums that it last yielded."""

    vectors: list[Vector]
    sweeps: Sweeps
    squares: Tensor


class TrustRatioOptimizer(torch.optim.Optimizer):
    """The base. Groups with weight_decay 0, and parameters in `exclude`, do not decay.

    How the parameters are cut is learned at the first step, from whoever calls it; `attach(engine)` right after
    deepspeed.initialize says at once whether it is a way that can be followed. A subclass has `sweeps` and `ratios`.
    """

    always_adapt = False  # what does not decay has a trust ratio too

    def __init__(
        self, params: Any, defaults: dict[str, Any], *, exclude: Collection[Tensor] = (), normalize: bool = False
    ) -> None:
        super().__init__(params, defaults)
        excluded = {id(parameter) for parameter in exclude}
        pairs = [(parameter, group) for group in self.param_groups for parameter in group["params"]]
        self.parameters = [parameter for parameter, _ in pairs]
        self.sizes = [layout.size(parameter) for parameter in self.parameters]  # before an engine cuts them
        # By parameter, not by group: at stage 3 loading a universal checkpoint gives all groups the first one's values.
        self.decays = [group["weight_decay"] != 0 and id(parameter) not in excluded for parameter, group in pairs]
        self._weight_decays = [
            group["weight_decay"] * decays for (_, group), decays in zip(pairs, self.decays, strict=True)
        ]
        if not any(self.decays) and not self.always_adapt:
            warnings.warn(
                f"no parameter decays, so that every trust ratio of {type(self).__name__} is 1: give it weight_decay",
                stacklevel=3,
            )
        self._normalize = normalize
        self._layout: Layout | None = None
        self._masks: dict[int, Tensor] = {}
        self._waiting: list[_Going] = []
        self._gradient_scale: Tensor | None = None
        self._squares: Tensor | None = None
        if "deepspeed" in sys.modules:
            layout.allow_under_zero(type(self))

    def attach(self, engine: Any) -> None:
        """Learns how `engine`, made with this optimizer, cuts its parameters. All ranks call it, or none.

        Raises ScaleError where the cut cannot be followed.
        """
        self._masks, self._waiting, self._squares = {}, [], None
        self._layout = layout.of_engine(engine, self, wants_norm=self._normalize)

    def sweeps(self, vectors: list[Vector], group: dict[str, Any], gradient_scale: Tensor | None) -> Sweeps:
        """A step of vectors of one group, device, dtype and age: yields [k, pieces] sums of squares in fp64.

        It is sent those of the pieces' whole tensors. What is read of the gradient after a yield must be kept in a
        variable: ZeRO lets go of it.
        """
        raise NotImplementedError

    def ratios(self, squares: Tensor, weight_decay: Tensor) -> Tensor:
        """Trust ratios [n] from the last sums of squares [k, n] of whole tensors and their decay [n]."""
        raise NotImplementedError

    def states_of(self, vectors: list[Vector], *names: str) -> list[dict[str, Any]]:
        """Each vector's states, of which those called `names` begin at zero, with "step" counted on."""
        states = [self.state[vector.tensor] for vector in vectors]
        for vector, state in zip(vectors, states, strict=True):
            state["step"] = state.get("step", 0) + 1
            for name in names:
                if name not in state:
                    state[name] = vector.zeros()
        return states

    def decays_of(self, vectors: list[Vector]) -> list[bool]:
        """Of each piece."""
        return [self.decays[piece.parameter] for vector in vectors for piece in vector.pieces]

    def weight_decay_of(self, vectors: list[Vector], group: dict[str, Any]) -> Tensor:
        """[pieces], where the vectors are."""
        return torch.cat([self._mask(vector) for vector in vectors]) * group["weight_decay"]

    def _mask(self, vector: Vector) -> Tensor:
        """1 for the pieces that decay. Made once: to make a tensor of numbers within a step is to wait for a GPU."""
        if id(vector) not in self._masks:
            self._masks[id(vector)] = vector.counted.new_tensor(self.decays_of([vector]))
        return self._masks[id(vector)]

    @property
    def trust_ratios(self) -> Tensor:
        """[parameters] in fp64, of the last step; of each one's own expert where those differ by rank."""
        if self._squares is None or self._layout is None:
            return torch.ones(len(self.parameters), dtype=torch.float64)
        squares = self._squares[:, self._layout.columns]
        return self.ratios(squares, squares.new_tensor(self._weight_decays))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if hasattr(self, "parameters"):
            raise ScaleError(
                "optimizer: a group cannot be added once it is made",
                hint="make it with all parameters; those without a gradient are left alone",
            )
        super().add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        """For copy and pickle; how tensors are cut is found out anew."""
        return {**self.__dict__, "_layout": None, "_masks": {}, "_waiting": [], "_squares": None}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        with torch.enable_grad():
            loss = closure() if closure else None
        handed = [(t, group) for group in self.param_groups for t in group["params"] if t.grad is not None]
        if self._layout is None:
            if self._is_trial(handed):
                return loss
            self._layout = layout.of_caller(self, [t for t, _ in handed], wants_norm=self._normalize)
        earlier = len(self._waiting)
        if not earlier and handed:
            self._gradient_scale = self._scale([t.grad for t, _ in handed]) if self._normalize else None
        if not handed:
            return loss
        for vectors, group in self._alike(handed):
            sweeps = self.sweeps(vectors, group, self._gradient_scale)
            self._waiting.append(_Going(vectors, sweeps, next(sweeps)))
        here = sum(len(going.vectors) for going in self._waiting)
        if self._layout.every_call or here == len(self._layout.vectors):
            self._finish(self._layout, earlier)
        return loss

    def _alike(self, handed: list[tuple[Tensor, Any]]) -> list[tuple[list[Vector], dict[str, Any]]]:
        """The vectors of the tensors in runs that can be stepped at once, each with its group."""
        known = self._layout.vectors
        waiting = {id(vector.tensor) for going in self._waiting for vector in going.vectors}
        runs: dict[tuple[Any, ...], tuple[list[Vector], dict[str, Any]]] = {}
        for tensor, group in handed:
            if id(tensor) not in known or id(tensor) in waiting:
                raise ScaleError(
                    "optimizer: step() got a tensor that is no parameter of its own, or the same one twice",
                    hint="one optimizer for each engine; attach(engine) again after its parameters were laid out anew",
                )
            waiting.add(id(tensor))
            age = self.state[tensor].get("step", 0)
            run = runs.setdefault((id(group), tensor.device, tensor.dtype, age), ([], group))
            run[0].append(known[id(tensor)])
        return list(runs.values())

    def _finish(self, where: Layout, earlier: int) -> None:
        """The all-reduce and what follows it; the model's copies of the first `earlier` are made anew."""
        going, self._waiting = self._waiting, []
        late = [vector for entry in going[:earlier] for vector in entry.vectors]
        while going:
            sums = where.summed([(entry.vectors, entry.squares) for entry in going])
            still = []
            for vectors, sweeps, _ in going:
                columns = torch.cat([vector.columns for vector in vectors])
                with contextlib.suppress(StopIteration):
                    still.append(_Going(vectors, sweeps, sweeps.send(sums[:, columns])))
            going = still
        if self._squares is None or not where.every_call:
            self._squares = sums
        else:  # what another call of this step has summed stays
            self._squares = torch.where(sums.any(0), sums, self._squares)
        for vector in late:  # DeepSpeed copied these when their call returned
            vector.working.copy_(vector.master)

    def _is_trial(self, handed: list[tuple[Tensor, Any]]) -> bool:
        """Whether this is the step with zero gradients that a wrapper takes when it is made.

        At stage 0 in 16 bit, to have the states allocated (deepspeed 0.19.8, fp16/unfused_optimizer.py). To LAMB it
        would be a step: the update is the decay alone, whose ratio shrinks every matrix by the full learning rate.
        """
        own = {id(parameter) for parameter in self.parameters}
        return any(id(t) not in own for t, _ in handed) and not any(bool(t.grad.any()) for t, _ in handed)

    def _scale(self, gradients: list[Tensor]) -> Tensor:
        """What makes the global gradient norm 1."""
        if self._layout is not None and self._layout.gradient_norm is not None:
            norm = torch.as_tensor(self._layout.gradient_norm(), device=gradients[0].device)
        else:
            norm = squared_norms([gradient.flatten() for gradient in gradients]).sum().sqrt()
        return torch.where(norm > 0, 1 / norm, 1.0)

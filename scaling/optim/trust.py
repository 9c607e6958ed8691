"""What LAMB and LARS share: a step that is scaled by a ratio of norms of each whole tensor, wherever its elements are.

A step is two sweeps with one all-reduce between: `measure` advances the moments and sums squares over the pieces that
this rank has, `apply` moves the weights by the ratio of the sums. ZeRO calls step() once per group of parameters (stage
3: per sub-group); sweeps of earlier calls wait for the last, so that there is one all-reduce per step. Squares are
summed in fp64: how a tensor is cut then does not show in its ratio, and torch's fp32 norm on a CPU, a running sum, is
off by 3.6e-3 for a vocabulary of 30,522 x 768.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scaling.errors import ScaleError
from scaling.optim import layout
from scaling.optim.layout import Layout, Vector

# Elements that the sweeps take at once: on a CPU the 2 MB of w, g, m and v that a core's cache holds, on a GPU as many
# as keep the temporaries to 0.2 GB.
_BATCH = {"cpu": 1 << 17}
_BATCH_OF_A_GPU = 1 << 24


class _Sweep(NamedTuple):
    """A vector that was measured; `kept` is what its second sweep needs beside the states."""

    vector: Vector
    group: dict[str, Any]
    squares: Tensor
    kept: Any


class TrustRatioOptimizer(torch.optim.Optimizer):
    """The base. Groups with weight_decay 0, and parameters in `exclude`, do not decay.

    Under DeepSpeed call `attach(engine)` after deepspeed.initialize; without, a tensor that was not among the
    constructor's is refused. A subclass says how to `measure`, to `apply`, and what the `ratios` are.
    """

    def __init__(
        self, params: Any, defaults: dict[str, Any], *, exclude: Collection[Tensor] = (), normalize: bool = False
    ) -> None:
        super().__init__(params, defaults)
        excluded = {id(parameter) for parameter in exclude}
        pairs = [(parameter, group) for group in self.param_groups for parameter in group["params"]]
        self.parameters = [parameter for parameter, _ in pairs]
        # By parameter, not by group: at stage 3 loading a universal checkpoint gives all groups the first one's values.
        self.decays = [group["weight_decay"] != 0 and id(parameter) not in excluded for parameter, group in pairs]
        self.trust_ratios: list[float] = []  # of the last step, by parameter
        self._normalize = normalize
        self._layout: Layout | None = None
        self._waiting: list[_Sweep] = []
        self._gradient_scale = 1.0

    def attach(self, engine: Any) -> None:
        """Learns how `engine`, made with this optimizer, cuts its parameters. Raises ScaleError where it cannot."""
        self._layout = layout.of(engine, self, self.parameters, wants_norm=self._normalize)

    def measure(self, vector: Vector, group: dict[str, Any], gradient_scale: float) -> tuple[Tensor, Any]:
        """Advances the states; (squares of weights and updates, [2, pieces] in fp64; what `apply` needs)."""
        raise NotImplementedError

    def ratios(self, weight_norms: Tensor, update_norms: Tensor) -> Tensor:
        """Each parameter's trust ratio from the norms of the whole tensors."""
        raise NotImplementedError

    def apply(self, vector: Vector, group: dict[str, Any], ratios: list[float], kept: Any) -> None:
        """Moves the weights of `vector`, each piece by its ratio."""
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        with torch.enable_grad():
            loss = closure() if closure else None
        handed = [(t, group) for group in self.param_groups for t in group["params"] if t.grad is not None]
        if self._layout is None:
            if self._is_trial(handed):
                return loss
            self._layout = layout.whole(self.parameters)
        earlier = len(self._waiting)
        if not earlier:
            self._gradient_scale = self._scale([t.grad for t, _ in handed]) if self._normalize else 1.0
        for tensor, group in handed:
            vector = self._layout.vectors.get(id(tensor))
            if vector is None or any(sweep.vector is vector for sweep in self._waiting):
                raise ScaleError(
                    "optimizer: step() got a tensor that is no parameter of its own, or the same one twice",
                    hint="call attach(engine) after deepspeed.initialize",
                )
            self._waiting.append(_Sweep(vector, group, *self.measure(vector, group, self._gradient_scale)))
        if self._layout.group is None or len(self._waiting) == len(self._layout.vectors):
            self._finish(self._layout, earlier)
        return loss

    def _finish(self, where: Layout, earlier: int) -> None:
        """The all-reduce and the second sweeps; the model's copies of the first `earlier` vectors are made anew."""
        sweeps, self._waiting = self._waiting, []
        if not sweeps:
            return
        device = sweeps[0].squares.device
        sums = torch.zeros(2, len(self.parameters), dtype=torch.float64, device=device)
        owners = [[piece.parameter for piece in sweep.vector.pieces] for sweep in sweeps]
        for sweep, owner in zip(sweeps, owners, strict=True):
            sums.index_add_(1, torch.tensor(owner, dtype=torch.long, device=device), sweep.squares)
        self.trust_ratios = self.ratios(*where.summed(sums).sqrt()).tolist()
        for sweep, owner in zip(sweeps, owners, strict=True):
            self.apply(sweep.vector, sweep.group, [self.trust_ratios[number] for number in owner], sweep.kept)
        for sweep in sweeps[:earlier]:  # DeepSpeed copied these when their call returned, before their second sweep
            sweep.vector.working.copy_(sweep.vector.master)

    def _is_trial(self, handed: list[tuple[Tensor, Any]]) -> bool:
        """Whether this is the step with zero gradients that a wrapper takes when it is made.

        At stage 0 in 16 bit, to have the states allocated (deepspeed 0.19.8, fp16/unfused_optimizer.py). To LAMB it
        would be a step: the update is the decay alone, whose ratio shrinks every matrix by the full learning rate.
        """
        own = {id(parameter) for parameter in self.parameters}
        return any(id(t) not in own for t, _ in handed) and not any(bool(t.grad.any()) for t, _ in handed)

    def _scale(self, gradients: list[Tensor]) -> float:
        """What makes the global gradient norm 1."""
        if self._layout is not None and self._layout.gradient_norm is not None:
            norm = float(self._layout.gradient_norm())
        else:
            norm = sum(float(squared_norms([g]).sum()) for g in gradients) ** 0.5
        return 1 / norm if norm > 0 else 1.0


def pieces_of(vector: Vector, tensor: Tensor) -> list[Tensor]:
    """The part of `tensor`, which is as long as the vector, that each piece means."""
    flat = tensor.detach().view(-1) if tensor.is_contiguous() else tensor.detach().reshape(-1)
    return [flat[piece.start : piece.stop] for piece in vector.pieces]


def batches(*rows: Sequence[Tensor]) -> Iterator[tuple[list[int], list[list[Tensor]]]]:
    """`rows` of equally long tensors side by side, in runs that fit a cache: (which tensors, their parts by row)."""
    if not rows[0]:
        return
    room = limit = _BATCH.get(rows[0][0].device.type, _BATCH_OF_A_GPU)
    numbers: list[int] = []
    parts: list[list[Tensor]] = [[] for _ in rows]
    for number, tensors in enumerate(zip(*rows, strict=True)):
        start, length = 0, tensors[0].numel()
        while start < length:
            stop = min(length, start + room)
            numbers.append(number)
            for row, tensor in zip(parts, tensors, strict=True):
                row.append(tensor[start:stop])
            room -= stop - start
            start = stop
            if not room:
                yield numbers, parts
                room, numbers, parts = limit, [], [[] for _ in rows]
    if numbers:
        yield numbers, parts


def squared_norms(tensors: list[Tensor]) -> Tensor:
    """Each tensor's sum of squares, summed in fp64."""
    if tensors[0].device.type == "cpu":  # three times as fast here as vector_norm with dtype=float64
        doubles = [tensor.double().flatten() for tensor in tensors]
        return torch.stack([torch.dot(double, double) for double in doubles])
    return torch.stack(torch._foreach_norm(tensors, 2, dtype=torch.float64)).square()

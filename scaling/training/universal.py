"""A checkpoint under every plan: each element by the name of its parameter, read where it was written.

DeepSpeed's universal checkpoints (0.19.8) are wrong under round_robin_gradients, give all groups the first one's
hyper-parameters at stage 3, and break off between stages 1 and 2 and stage 3 (docs/upstream). So a checkpoint carries a
map of its own, layout.json: which elements of which parameter stand where in DeepSpeed's shards, as the engine that
wrote them had them. Nothing is converted: each rank of an engine in another layout reads from memory-mapped shards the
elements that it steps. What a recipe fixes is not read: learning rate, decay, and what is frozen.
"""

import bisect
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from scaling import manifest
from scaling.errors import FileProblems, InputError, ScaleError
from scaling.optim import layout
from scaling.training.experts import Part, part_of
from scaling.training.shards import load as load_shard

MAP = "layout.json"
MASTER = "master"  # beside the names of the optimizer's states: the weights, in fp32 where they are trained in 16 bit

_KEYS = ("wrapper", "optimizer", "shapes", "counters", "loss_scale", "shards")
_COUNTERS = ("global_steps", "global_samples", "skipped_steps")


# Writing


def describe(engine: Any) -> dict[str, Any] | None:
    """The map of this rank's shard; None where parameters are cut by more than ZeRO, or in a way that is not known."""
    if engine.seq_dp_world_size != dist.get_world_size():
        return None
    if engine.has_moe_layers and engine.zero_optimization_stage() == 0:
        return None  # whose experts are in files of their own, without their states
    trained = _trained(engine)
    parts = {name: part_of(name, parameter) for name, parameter in trained.items()}
    try:
        vectors = layout.held(engine, trained)
    except ScaleError:
        return None
    wrapper = engine.optimizer
    return {
        "wrapper": type(wrapper).__name__,
        "optimizer": type(getattr(wrapper, "optimizer", wrapper)).__name__,
        "shapes": {part.name: part.shape for part in parts.values()},
        "counters": {name: getattr(engine, name) for name in _COUNTERS},
        "loss_scale": float(wrapper.loss_scale) if engine.fp16_enabled() else None,
        "shard": {
            "file": _file(engine),
            "vectors": [_places(vector.pieces, parts) for vector in vectors],
        },
    }


def _places(pieces: dict[str, layout.Piece], parts: dict[str, Part]) -> dict[str, list[list[int]]]:
    """[start, stop, offset] of each stretch of a vector, by the whole parameter that it is of."""
    places: dict[str, list[list[int]]] = {}
    for name, piece in pieces.items():
        found = parts[name].places(piece.start, piece.stop, piece.offset)
        places.setdefault(parts[name].name, []).extend(found)
    return places


def whole_map(engine: Any) -> str | None:
    """The text of layout.json for what `engine` writes, None where there is none; all ranks call it."""
    mine = describe(engine)
    everyones: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyones, mine)
    if mine is None or None in everyones:
        return None
    shards = [each["shard"] for each in everyones]
    if all(shard == shards[0] for shard in shards):  # every rank has everything, and the first one's is written
        del shards[1:]
    del mine["shard"]
    return json.dumps({**mine, "shards": shards})


def _trained(engine: Any) -> dict[str, Tensor]:
    return {name: p for name, p in engine.module.named_parameters() if p.requires_grad}


def _file(engine: Any) -> str:
    """Where DeepSpeed has this rank write what its optimizer steps (0.19.8, runtime/engine.py:4319)."""
    if engine.zero_optimization_stage() == 0:
        return "mp_rank_00_model_states.pt"
    return f"{'bf16_' * engine.bfloat16_enabled()}zero_pp_rank_{dist.get_rank()}_mp_rank_00_optim_states.pt"


# Reading


class _Place(NamedTuple):
    """Where the elements of a parameter from `offset` to `stop` are: from `start` on in a vector of a shard."""

    offset: int
    stop: int
    vector: dict[str, Tensor]
    start: int


class Saved:
    """The tensors of a checkpoint by the names of parameters, however they were cut.

    Raises ScaleError naming each shard that is missing, damaged or shorter than the map says, before one is read.
    """

    def __init__(self, checkpoint: Path, field: str = "resume") -> None:
        self._named = manifest.read(checkpoint, field).files
        self.map = read_map(checkpoint, field)
        if self.map is None:
            raise InputError(
                field, str(checkpoint), f"has no {MAP}, and can be read only by the layout that wrote it",
                hint="NVMe, partial offload and earlier versions write such checkpoints",
            )  # fmt: skip
        self.shapes = {name: torch.Size(shape) for name, shape in self.map["shapes"].items()}
        self.states: dict[str, torch.dtype] = {}
        self.numbers: dict[str, float] = {}  # states of a whole vector: the step
        self.others: set[str] = set()  # neither a number nor one per element: factored, quantised
        self._places: dict[str, list[_Place]] = {name: [] for name in self.shapes}
        problems = [problem for shard in self.map["shards"] for problem in self._enter(checkpoint, shard)]
        for places in self._places.values():
            places.sort(key=lambda place: place.offset)
        if not problems:
            problems = [f"{MAP}: the shards have not every element of {name} once" for name in self._incomplete()]
        if problems:
            raise FileProblems(f"{field}: {checkpoint}", problems, hint="name another checkpoint")

    def fill(self, target: Tensor, name: str, key: str, offset: int = 0) -> None:
        """Copies the elements of `name` from `offset` on into the vector `target`: of MASTER or of a state.

        A parameter that never had a gradient may have no state yet: zeros.
        """
        places, stop = self._places[name], offset + target.numel()
        first = bisect.bisect_right(places, offset, key=lambda place: place.offset) - 1
        for place in places[first:]:
            if place.offset >= stop:
                break
            begin, end = max(offset, place.offset), min(stop, place.stop)
            part = target[begin - offset : end - offset]
            if key in place.vector:
                source = place.vector[key].view(-1)[place.start :]
                part.copy_(source[begin - place.offset : end - place.offset])
            else:
                part.zero_()

    def require_movable(self) -> None:
        """Raises ScaleError where a state has no place in another layout."""
        if self.others:
            raise ScaleError(
                f"resume: the optimizer's {', '.join(sorted(self.others))} cannot be laid out anew",
                hint="resume on as many ranks, at the same ZeRO stage and with the optimizer where it was",
            )

    def weight(self, name: str) -> Tensor:
        tensor = torch.empty(self.shapes[name], dtype=self._places[name][0].vector[MASTER].dtype)
        self.fill(tensor.view(-1), name, MASTER)
        return tensor

    def _enter(self, checkpoint: Path, shard: dict[str, Any]) -> list[str]:
        """Takes in what a shard has; what is wrong with it."""
        path = checkpoint / shard["file"]
        if shard["file"] not in self._named:
            return [f"{shard['file']} is not named in {manifest.NAME}"]
        try:
            content = load_shard(path, map_location="cpu", mmap=True)
        except FileNotFoundError:
            return [f"{path.name} is missing"]
        except Exception as error:  # torch has no type of its own for a damaged file
            return [f"{path.name} cannot be read: {str(error).splitlines()[0]}"]
        try:
            masters, states_of = _FORMATS.get(self.map["wrapper"], _plain)(content, shard["vectors"])
            pairs = list(zip(shard["vectors"], masters, strict=True))
        except (KeyError, TypeError, ValueError) as error:
            return [f"{path.name} is not a shard of {self.map['wrapper']}: {error!r}"]
        problems = []
        for number, (pieces, master) in enumerate(pairs):
            places = [(name, place) for name, stretches in pieces.items() for place in _stretches(stretches)]
            needed = max((stop for _, (_, stop, _) in places), default=0)
            if master.numel() < needed:
                problems.append(f"{path.name}: vector {number} has {master.numel()} of {needed} elements")
            vector = {MASTER: master}
            for key, value in states_of.get(number, {}).items():
                if isinstance(value, Tensor) and value.dim() > 0 and value.numel() >= needed:
                    vector[key] = value
                    self.states[key] = value.dtype
                elif isinstance(value, float | int) or (isinstance(value, Tensor) and value.dim() == 0):
                    # The largest: FusedAdam counts on a group's last tensor only (0.19.8, ops/adam/fused_adam.py).
                    self.numbers[key] = max(self.numbers.get(key, 0), float(value))
                else:
                    self.others.add(key)
            for name, (start, stop, offset) in places:
                self._places[name].append(_Place(offset, offset + stop - start, vector, start))
        return problems

    def _incomplete(self) -> list[str]:
        """Parameters of which an element is in no place, or in two."""
        names = []
        for name, places in self._places.items():
            ends = [0, *(place.stop for place in places)]
            begins = [*(place.offset for place in places), math.prod(self.shapes[name])]
            if ends != begins:
                names.append(name)
        return names


def _stretches(found: list[Any]) -> list[list[int]]:
    """A parameter's stretches of a vector; earlier versions wrote the only one there was."""
    return found if found and isinstance(found[0], list) else [found]


def read_map(checkpoint: Path, field: str = "resume") -> Any:
    """What layout.json says; None where a checkpoint has none."""
    try:
        content = json.loads((checkpoint / MAP).read_text(encoding="utf-8"))
        return {key: content[key] for key in _KEYS}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(field, str(checkpoint), f"has an unreadable {MAP}: {error!r}") from None


# What DeepSpeed's wrappers write: (their fp32 vectors, each one's states by its number), in the order of layout.held.

_Vectors = tuple[list[Tensor], dict[int, dict[str, Any]]]


def _stage_1_and_2(content: Any, pieces: Any) -> _Vectors:
    of = content["optimizer_state_dict"]
    states = of["base_optimizer_state"]  # a list with elastic_checkpoint
    return of["single_partition_of_fp32_groups"], states["state"] if "state" in states else dict(enumerate(states))


def _stage_3(content: Any, pieces: Any) -> _Vectors:
    of = content["optimizer_state_dict"]
    return of["fp32_flat_groups"], of["optimizer_state_dict"]["state"]


def _unfused(content: Any, pieces: Any) -> _Vectors:
    of = content["optimizer"]
    return [master for group in of["fp32_groups"] for master in group], of["optimizer_state_dict"]["state"]


def _plain(content: Any, pieces: Any) -> _Vectors:
    """Stage 0 in fp32: the model's parameters are what is stepped."""
    return [content["module"][name] for names in pieces for name in names], content["optimizer"]["state"]


_FORMATS: dict[str, Callable[[Any, Any], _Vectors]] = {
    "DeepSpeedZeroOptimizer": _stage_1_and_2,
    "BF16_Optimizer": _stage_1_and_2,
    "DeepSpeedZeroOptimizer_Stage3": _stage_3,
    "FP16_UnfusedOptimizer": _unfused,
}


# Loading


def is_laid_out_alike(engine: Any, checkpoint: Path) -> bool:
    """Whether all ranks of `engine` step what the shards that as many ranks wrote have, tensor by tensor; a collective.

    Without a map on either side DeepSpeed's own loader is all there is.
    """
    saved, mine = read_map(checkpoint), describe(engine)
    alike = saved is None and mine is None
    if saved and mine:
        shards = saved["shards"]
        alike = shards[dist.get_rank() % len(shards)] == mine["shard"]
        alike = alike and all(saved[key] == mine[key] for key in ("wrapper", "optimizer", "shapes"))
    everyones: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyones, alike)
    return all(everyones)


@torch.no_grad()
def load(engine: Any, checkpoint: Path) -> None:
    """Weights, states and counters of `checkpoint` into an engine that may be cut in any other way; a collective.

    What an optimizer keeps in its groups stays, since hyper-parameters are there, and the recipe has them. In fp16 the
    loss scale goes on; the steps since it last changed are counted anew.
    """
    saved, wrapper = Saved(checkpoint), engine.optimizer
    saved.require_movable()
    optimizer = getattr(wrapper, "optimizer", wrapper)
    trained = _trained(engine)
    parts = {name: part_of(name, parameter) for name, parameter in trained.items()}
    if other := {part.name for part in parts.values()} ^ saved.shapes.keys():
        raise InputError("resume", str(checkpoint), f"has other parameters: {sorted(other)}")
    at_stage_3 = engine.zero_optimization_stage() == 3
    if at_stage_3:
        wrapper.checkpoint_event_prologue()  # releases what is gathered, which would stay as it was
    for vector in layout.held(engine, trained):
        state = optimizer.state[vector.tensor]
        for key, dtype in saved.states.items():  # in place where it is, since DeepSpeed may have views of it
            if key not in state:
                state[key] = torch.zeros_like(vector.tensor, dtype=dtype)
        for key in (MASTER, *saved.states):
            tensor = vector.tensor if key == MASTER else state[key]
            for name, stretches in _places(vector.pieces, parts).items():
                for start, stop, offset in stretches:
                    saved.fill(tensor.view(-1)[start:stop], name, key, offset)
        state |= {key: _number(optimizer, vector.tensor, value) for key, value in saved.numbers.items()}
        if at_stage_3 and vector.working is not None:
            vector.working.copy_(vector.tensor)
    if at_stage_3:
        wrapper.checkpoint_event_epilogue()  # gathers small parameters, which stay whole
    else:
        for name, parameter in trained.items():  # of all ranks, where this one steps a part
            for start, stop, offset in parts[name].places(0, parameter.numel(), 0):
                saved.fill(parameter.view(-1)[start:stop], parts[name].name, MASTER, offset)
    for name, value in saved.map["counters"].items():
        setattr(engine, name, value)
    if engine.fp16_enabled() and saved.map["loss_scale"]:
        wrapper.loss_scale = saved.map["loss_scale"]


def _number(optimizer: Any, vector: Tensor, value: float) -> Any:
    """A state of a whole vector as this optimizer keeps it: torch's Adam as a tensor, others as an int."""
    if isinstance(optimizer, torch.optim.Adam):
        return torch.tensor(value, dtype=torch.float32, device=vector.device)
    return int(value) if value.is_integer() else value

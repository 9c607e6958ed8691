"""Which optimizers there are, what their states cost, and under which plans each stays the optimizer that it is.

ZeRO hands an optimizer flat fp32 vectors: a rank's share of many tensors end to end (deepspeed 0.19.8,
runtime/zero/stage_1_and_2.py, stage3.py). A step that treats every element alike does not notice. One that needs whole
tensors, for a norm or a factorisation, becomes another optimizer at every stage and number of ranks and says nothing,
unless its implementation knows where the tensors are. What a row claims, tests/optim/test_table.py runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from scaling.strategy import Offload

Name = Literal["adamw", "adamw8bit", "lamb", "lars", "lans", "lion", "muon", "adafactor", "sgd"]


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """`moments` are per parameter, each as wide as the stack keeps them unless it has `moment_bytes` of its own.

    `whole` says what of whole tensors a step needs; empty: it works element by element. `reads_twice`: nothing of a
    tensor may be applied before all of it is known. `implementation` is the class that steps, empty where
    scale/train.py has none and the row is for estimates alone; `named_in_ds_config`: DeepSpeed makes it, by the file's
    optimizer block. It is refused elsewhere than at its stages and offloads.
    """

    moments: int
    moment_bytes: int | None = None
    offloaded_moments: int | None = None  # where the host's implementation keeps another number
    whole: str = ""
    reads_twice: bool = False
    implementation: str
    named_in_ds_config: bool
    known_to_zero: bool = False  # zero_allow_untested_optimizer may stay false
    all_reduces: bool = False  # its gradients must not be reduce-scattered
    stages: tuple[int, ...] = (0, 1, 2, 3)
    offloads: tuple[Offload, ...] = ("none", "cpu")
    not_offloaded: str = "no optimizer but AdamW and LAMB has been run from NVMe"  # why
    needs_gpu: bool = False  # unless it is offloaded
    source: str


_NORMS = "the norms of each tensor"

OPTIMIZERS: Mapping[Name, Optimizer] = {
    "adamw": Optimizer(
        moments=2, known_to_zero=True, named_in_ds_config=True, offloads=("none", "cpu", "nvme"),
        implementation="torch.optim.AdamW, deepspeed.ops.adam.DeepSpeedCPUAdam where offloaded",
        source="Loshchilov & Hutter 2019 (arXiv 1711.05101)",
    ),
    "adamw8bit": Optimizer(
        moments=2, moment_bytes=1, implementation="", named_in_ds_config=False, stages=(), offloads=(),
        source="Dettmers et al. 2022 (arXiv 2110.02861): moments of one byte, quantised in blocks",
    ),
    "lamb": Optimizer(
        moments=2, whole=_NORMS, reads_twice=True, implementation="scaling.optim.Lamb", named_in_ds_config=False,
        offloads=("none", "cpu", "nvme"), source="You et al. 2020 (arXiv 1904.00962), algorithm 2",
    ),
    "lars": Optimizer(
        moments=1, whole=_NORMS, reads_twice=True, implementation="scaling.optim.Lars", named_in_ds_config=False,
        source="You, Gitman & Ginsburg 2017 (arXiv 1708.03888), algorithm 1",
    ),
    "lans": Optimizer(
        moments=2, whole=_NORMS, reads_twice=True, implementation="scaling.optim.Lans", named_in_ds_config=False,
        source="Zheng et al. 2020 (arXiv 2006.13484), algorithm 2",
    ),
    # torch has no Lion. DeepSpeed's is a CUDA kernel, or on the host one that also allocates a second moment and never
    # looks at it (deepspeed 0.19.8, ops/lion/cpu_lion.py). Run offloaded on CPU ranks; not seen on a GPU.
    "lion": Optimizer(
        moments=1, offloaded_moments=2, known_to_zero=True, named_in_ds_config=True, needs_gpu=True,
        implementation="deepspeed.ops.lion.FusedLion, DeepSpeedCPULion where offloaded",
        source="Chen et al. 2023 (arXiv 2302.06675), algorithm 2",
    ),
    # DeepSpeed's wrappers gather whole matrices for this one class. torch.optim.Muon stops at a flat shard. One moment
    # for the layers' matrices, AdamW's two for the rest.
    # Stage 3 refuses to reduce-scatter its gradients (deepspeed 0.19.8, runtime/zero/stage3.py:360). Stages 1 and 2,
    # where 16-bit gradients are summed in fp32, forget where to put a bias's gradient if a matrix of Muon's follows it
    # in the bucket: merging the two, average_tensor (stage_1_and_2.py:1681) drops the first one's destination.
    "muon": Optimizer(
        moments=1, whole="each matrix, to make it orthogonal", known_to_zero=True, all_reduces=True,
        named_in_ds_config=False, implementation="deepspeed.runtime.zero.muon.muon_optimizer.MuonWithAuxAdam",
        source="Jordan et al. 2024 (kellerjordan.github.io/posts/muon)",
    ),
    # A row and a column of second moments per matrix, below a hundredth of a moment. Of a flat shard torch's keeps one
    # per element instead, and takes the size of its step from the shard.
    "adafactor": Optimizer(
        moments=0, whole="rows and columns of each matrix, and each tensor's mean square", stages=(0,),
        offloads=("none",), implementation="torch.optim.Adafactor", named_in_ds_config=True,
        source="Shazeer & Stern 2018 (arXiv 1804.04235), algorithms 4 and 5",
    ),
    "sgd": Optimizer(
        moments=1, implementation="torch.optim.SGD", named_in_ds_config=True,
        source="Sutskever et al. 2013, with momentum; without one its state is nothing",
    ),
}  # fmt: skip

# Others that a script may bring, and what of a whole tensor, or of several, their step needs.
OTHERS_OF_WHOLE_TENSORS: Mapping[str, str] = {
    "came": "rows and columns of each matrix",
    "fusedlamb": _NORMS,
    "galore": "a singular value decomposition of each gradient",
    "larc": _NORMS,
    "lbfgs": "inner products over all parameters",
    "novograd": "the norm of each tensor's gradient",
    "shampoo": "products of each matrix with itself",
    "soap": "products of each matrix with itself",
}

TRAINABLE: tuple[Name, ...] = tuple(name for name, row in OPTIMIZERS.items() if row.implementation)


def unsound(name: Name, zero_stage: int, offload_optimizer: Offload) -> str:
    """Why this optimizer would not be itself under this plan, and what works; an empty string where it is."""
    row = OPTIMIZERS[name]
    if zero_stage in row.stages and offload_optimizer in row.offloads:
        return ""
    if not row.implementation:
        return f"scale/train.py has no {name}"
    if row.stages == (0,):
        return f"{name} works at stage 0 only: its step needs {row.whole}, and from stage 1 ZeRO gives it flat shards"
    where = {"none": "on the device", "cpu": "on the CPU", "nvme": "on NVMe"}
    places = " or ".join(where[place] for place in row.offloads)
    return f"{name} works with its states {places} only: {row.not_offloaded}"

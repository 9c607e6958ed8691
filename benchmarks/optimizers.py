"""One optimizer step of a BERT-base-sized model, ours against others', in one process on one machine.

    pip install timm pytorch-optimizer     (optional)
    python benchmarks/optimizers.py [ROUNDS]

Rounds are interleaved and the fastest of each counts, so that a busy machine slows all alike: read the ratios. The
floors are what the bytes that a step must move take at the bandwidth of a copy, measured in the same rounds. "flat" is
one tensor of all parameters, as which DeepSpeedCPUAdam is run; ZeRO's vectors have a piece for each tensor.
DeepSpeed's CPU Adam compiles for a minute the first time, torch.compile for half of one.
"""

import sys
import time
from collections.abc import Callable, Iterator
from itertools import product

import torch
from torch import nn

from scaling.optim import Lamb, Lans, Lars
from scaling.optim.kernels import native

# BERT-base, 12 layers x 768: embeddings, and each layer's matrices, biases and norms.
_LAYER = [*[(768, 768)] * 4, (3072, 768), (768, 3072), *[(768,)] * 9, (3072,)]
_SHAPES = [(30522, 768), (512, 768), *(shape for _, shape in product(range(12), _LAYER))]

# Bytes a parameter that must be read and written: Adam w, g, m, v once and w, m, v back; LAMB w, g, m, v, then m, v
# back, and w, m, v again for the step, w back.
_FLOORS = {"floor of Adam's 28 bytes": 28, "floor of LAMB's 40 bytes": 40}
_COPY = "copy of 8 bytes, 12 with the line that a write reads"
_BASE = "DeepSpeedCPUAdam"

Step = Callable[[], object]


def contenders(tensors: list[nn.Parameter], flat: nn.Parameter) -> Iterator[tuple[str, Step]]:
    """(name, a function that takes one step); those not installed say so."""
    other = torch.empty_like(flat)
    yield _COPY, lambda: other.copy_(flat)
    yield "torch AdamW, fused", torch.optim.AdamW(tensors, fused=True).step
    yield "torch AdamW, foreach", torch.optim.AdamW(tensors, foreach=True).step
    for kernel in ("native", "compiled", "eager"):
        if kernel == "native" and (obstacle := native.obstacle(flat)):
            print(f"scale Lamb, native: {obstacle}")
            continue
        yield f"scale Lamb, {kernel}", Lamb(tensors, lr=1e-3, kernel=kernel).step
        yield f"scale Lamb, {kernel}, flat", Lamb([flat], lr=1e-3, kernel=kernel).step
    yield "scale Lars", Lars(tensors, lr=1e-3).step
    yield "scale Lans", Lans(tensors, lr=1e-3).step
    try:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        yield _BASE, DeepSpeedCPUAdam([flat]).step
    except Exception as error:
        print(f"{_BASE}: not built here: {type(error).__name__}")
    for package, name in (("timm.optim", "timm Lamb"), ("pytorch_optimizer", "pytorch_optimizer Lamb")):
        try:
            module = __import__(package, fromlist=["Lamb"])
            yield name, module.Lamb(tensors, lr=1e-3).step
        except ImportError:
            print(f"{name}: not installed")


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    torch.manual_seed(0)
    tensors = [nn.Parameter(0.02 * torch.randn(shape)) for shape in _SHAPES]
    flat = nn.Parameter(torch.cat([tensor.detach().flatten() for tensor in tensors]))
    for tensor in (*tensors, flat):
        tensor.grad = 0.01 * torch.randn_like(tensor)
    with torch.no_grad():
        steps = dict(contenders(tensors, flat))
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for number, (name, step) in product(range(rounds + 1), steps.items()):
            started_at = time.perf_counter()
            step()
            if number:  # the first allocates
                seconds[name].append(time.perf_counter() - started_at)
    copy = seconds.pop(_COPY)
    seconds |= {name: [taken * size / 12 for taken in copy] for name, size in _FLOORS.items()}
    base = min(seconds.get(_BASE) or seconds["torch AdamW, fused"])
    size = f"{len(tensors)} tensors, {flat.numel():,} parameters in fp32"
    print(f"{size}, {torch.get_num_threads()} threads, {rounds} rounds\n")
    print(f"{'':28}{'fastest ms':>12}{'median ms':>12}{f'x {_BASE}':>20}")
    for name, taken in sorted(seconds.items(), key=lambda entry: min(entry[1])):
        median = sorted(taken)[len(taken) // 2]
        print(f"{name:28}{1e3 * min(taken):>12.1f}{1e3 * median:>12.1f}{min(taken) / base:>20.2f}")


if __name__ == "__main__":
    main()

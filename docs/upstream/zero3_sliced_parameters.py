"""ZeRO-3 does not free what it gathered of a parameter that is used in slices: autograd keeps them for the backward.

torchrun --nproc_per_node 2 zero3_sliced_parameters.py
"""

import gc

import deepspeed
import deepspeed.ops
import torch
import torch.distributed as dist

L, E, D = 8, 4, 256


class Layer(torch.nn.Module):
    """E matrices in one parameter, each taken as transformers' MixtralExperts takes it; or each in one of its own."""

    def __init__(self, sliced: bool) -> None:
        super().__init__()
        weights = [torch.randn(E, D, D) / D] if sliced else [torch.randn(D, D) / D for _ in range(E)]
        self.weights = torch.nn.ParameterList(torch.nn.Parameter(weight) for weight in weights)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        of_each = [self.weights[0][number] for number in range(E)] if len(self.weights) == 1 else self.weights
        for weight in of_each:
            x = torch.nn.functional.linear(x, weight)
        return x


deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # optional: nothing is compiled on a CPU then
deepspeed.init_distributed("gloo")
for sliced in (False, True):
    config = {
        "train_micro_batch_size_per_gpu": 1, "optimizer": {"type": "AdamW", "params": {"torch_adam": True}},
        "zero_optimization": {
            "stage": 3, "stage3_max_live_parameters": 2 * E * D * D, "stage3_max_reuse_distance": 0,
            "stage3_prefetch_bucket_size": 0, "stage3_param_persistence_threshold": 0,
        },
    }  # fmt: skip
    model = torch.nn.Sequential(*(Layer(sliced) for _ in range(L)))
    engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=config)
    loss = engine(torch.randn(1, D)).sum()
    saved, seen, todo = {}, set(), [loss.grad_fn]
    while todo:  # what the graph holds for the backward
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        todo += [following for following, _ in node.next_functions]
        for tensor in filter(torch.is_tensor, getattr(node, "saved_tensors", ())):
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    if dist.get_rank() == 0:
        how = "slices of one parameter" if sliced else "a parameter each"
        print(f"{how}: {sum(saved.values()) / (4 * E * D * D):.1f} of {L} layers' weights held after the forward")
    engine.backward(loss)
    del loss, engine, model
    gc.collect()
dist.destroy_process_group()

"""AutoEP's preset for Mixtral breaks off with transformers 5.23.0; the same layers named one by one are converted.

torchrun --nproc_per_node 2 autoep_mixtral_registry.py
"""

import deepspeed
import deepspeed.ops
import torch
import torch.distributed as dist
from transformers import MixtralConfig, MixtralForCausalLM

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # optional: nothing is compiled on a CPU then
deepspeed.init_distributed("gloo")
by_part = {"moe_layer_pattern": r"0\.model\.layers\.\d+\.mlp", "top_k": 2}
for how in ({"preset_model": "mixtral"}, by_part):
    sizes = {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    mixtral = MixtralForCausalLM(MixtralConfig(**sizes, num_key_value_heads=2, num_local_experts=2, vocab_size=32))
    model = mixtral if how is not by_part else torch.nn.Sequential(mixtral)  # whose configuration AutoEP does not see
    config = {
        "train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 1},
        "expert_parallel": {"enabled": True, "autoep_size": 2, **how},
        "optimizer": {"type": "AdamW", "params": {"torch_adam": True}},
    }  # fmt: skip
    groups = [{"params": list(model.parameters()), "name": "all"}]
    try:
        deepspeed.initialize(model=model, model_parameters=groups, config=config)
        outcome = type(mixtral.model.layers[0].mlp).__name__
    except TypeError as error:
        outcome = f"TypeError: {error}"
    if dist.get_rank() == 0:
        print(f"{next(iter(how))}: {outcome}")
dist.destroy_process_group()

"""With AutoTP train_batch_size counts every rank, though tensor parallel ranks share their samples.

torchrun --nproc_per_node 2 autotp_batch_size.py
"""

import deepspeed
import deepspeed.ops
import torch.distributed as dist
from transformers import LlamaConfig, LlamaForCausalLM

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # optional: nothing is compiled on a CPU then
deepspeed.init_distributed("gloo")


def engine_of(**batch):
    model = LlamaForCausalLM(
        LlamaConfig(num_hidden_layers=1, hidden_size=64, intermediate_size=96, num_attention_heads=4, vocab_size=128)
    )
    config = {"tensor_parallel": {"autotp_size": 2}, "optimizer": {"type": "SGD", "params": {"lr": 0.1}}, **batch}
    return deepspeed.initialize(model=model, model_parameters=model.parameters(), config=config)[0]


# Both ranks are given the same 4 samples: a step takes 4 of them, and 8 take two micro steps.
engine = engine_of(train_micro_batch_size_per_gpu=4)
derived = engine.train_batch_size()
asked = engine_of(train_batch_size=8, train_micro_batch_size_per_gpu=4)
if dist.get_rank() == 0:
    print(f"data parallel ranks {engine.dp_world_size}, micro batch 4")
    print(f"train_batch_size of one micro step: expected 4, seen {derived}")
    print(f"micro steps of train_batch_size 8: expected 2, seen {asked.gradient_accumulation_steps()}")
dist.destroy_process_group()

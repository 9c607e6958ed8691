"""deepspeed 0.19.8 with transformers 5.23.0: zero.Init around a model's constructor leaves it initialised otherwise.

Expected: the same standard deviation of the weights, 0.02, and the same first loss, about ln(vocabulary), as without.
Seen: zero.Init shards each parameter as its module is made, and transformers initialises the whole model afterwards
(modeling_utils.py, post_init), when no rank holds a weight to be written: torch's own initialisation stays.
"""

import deepspeed
import deepspeed.ops
import torch
from transformers import GPT2Config, GPT2LMHeadModel

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # optional: nothing is compiled on a CPU then
deepspeed.init_distributed("gloo")
config = GPT2Config(vocab_size=256, n_positions=32, n_embd=64, n_layer=2, n_head=2)
zero = {"train_batch_size": torch.distributed.get_world_size(), "zero_optimization": {"stage": 3}}


def said(model):
    with deepspeed.zero.GatheredParameters(list(model.parameters())):
        ids = torch.arange(32).view(1, 32)
        deviation = model.transformer.wte.weight.std()
        loss = model(input_ids=ids, labels=ids).loss
    return f"standard deviation of the embedding {float(deviation):.3f}, loss {float(loss.detach()):.2f}"


torch.manual_seed(0)
plain = GPT2LMHeadModel(config)
ids = torch.arange(32).view(1, 32)
expected = f"{float(plain.transformer.wte.weight.std()):.3f}, loss {float(plain(input_ids=ids, labels=ids).loss):.2f}"
with deepspeed.zero.Init(config_dict_or_path=zero):
    sharded = GPT2LMHeadModel(config)
found = said(sharded)
if torch.distributed.get_rank() == 0:
    print(f"expected: standard deviation of the embedding {expected}")
    print(f"seen:     {found}")
torch.distributed.destroy_process_group()

"""AutoTP does not know GPT-2: left to itself it gives up, and told which matrices to cut it cuts them the wrong way.

torchrun --nproc_per_node 2 autotp_gpt2.py
"""

import deepspeed
import deepspeed.ops
import torch
import torch.distributed as dist
from transformers import GPT2Config, GPT2LMHeadModel

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # optional: nothing is compiled on a CPU then
deepspeed.init_distributed("gloo")
# transformers keeps c_attn as [in, out], query, key and value side by side along the second dimension.
spec = {
    "patterns": [r".*c_attn\.weight$"], "partition_type": "column", "shape": [-1, 3], "partition_dim": 1,
}  # fmt: skip
by_table = {"use_default_specs": False, "layer_specs": [spec]}
for name, table in (("left to itself", {}), ("with a partition_config", {"partition_config": by_table})):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(n_layer=2, n_embd=64, n_head=4, vocab_size=128, use_cache=False, bos_token_id=0, eos_token_id=0)
    )
    ids = torch.arange(16).view(1, 16)
    expected = model(ids).logits.sum().item()
    config = {"train_micro_batch_size_per_gpu": 1, "tensor_parallel": {"autotp_size": 2, **table}}
    try:
        engine = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=config)[0]
        seen = f"{engine(ids).logits.sum().item():.4f}"
    except Exception as error:
        seen = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    if dist.get_rank() == 0:
        print(f"{name}: expected {expected:.4f}, seen {seen}")
dist.destroy_process_group()

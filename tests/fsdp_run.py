"""Packed log-probabilities and gradients of a model whose weights are shared out over CPU
processes, against the whole model's. Under torchrun."""

import copy
import os

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from slpo.packing import PreferenceCollator
from slpo.packing import batch_logps

torch.set_num_threads(1)
dist.init_process_group("gloo")
torch.manual_seed(0)
whole = GPTNeoXForCausalLM(
    GPTNeoXConfig(
        vocab_size=101,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        initializer_range=0.2,
    )
).double()
shared, mesh = copy.deepcopy(whole), init_device_mesh("cpu", (dist.get_world_size(),))
for layer in shared.gpt_neox.layers:
    fully_shard(layer, mesh=mesh)
fully_shard(shared, mesh=mesh)
tokens = torch.randint(
    1, 101, (dist.get_world_size(), 4, 3, 6), generator=torch.Generator().manual_seed(1)
).tolist()
batches = [
    PreferenceCollator(0)(
        [dict(prompt_ids=p, completion_ids=[c, r], ranks=[0, 1], row=0) for p, c, r in rows]
    )
    for rows in tokens
]

mine = batch_logps(shared, batches[dist.get_rank()])
mine.sum().backward()
everybody = sum(batch_logps(whole, batch).sum() for batch in batches) / len(
    batches
)  # FSDP averages over processes
everybody.backward()
with torch.no_grad():
    torch.testing.assert_close(
        mine, batch_logps(whole, batches[dist.get_rank()]), rtol=0, atol=1e-10
    )
for (name, a), b in zip(shared.named_parameters(), whole.parameters()):
    torch.testing.assert_close(
        a.grad.full_tensor(), b.grad, rtol=0, atol=1e-8, msg=lambda m: f"{name}: {m}"
    )
dist.barrier()
os._exit(0)  # as in small_run.py

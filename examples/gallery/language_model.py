"""A language model from its configuration, nothing downloaded.

A tiny GPT-2 with random weights: its loss is its own, its tokens are measured as tokens, and the report finds it
healthy.
"""

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import normscope as ns

torch.manual_seed(0)
model = GPT2LMHeadModel(
    GPT2Config(n_layer=6, n_head=4, n_embd=64, vocab_size=200, n_positions=32, bos_token_id=0, eos_token_id=0)
)
ids = torch.randint(200, (8, 32))

found = ns.diagnose(
    model, {"input_ids": ids, "labels": ids}, tokens=True, trial=False, label="GPT-2, 6 blocks", layers="*.h.?"
)
found.save("language_model.svg")

assert not [f for f in found.findings if f.severity == "error"]

"""Makes examples/demo-llama.pt2, the program that `make demo` trains: a small Llama over bytes, meant for context 8,192.

    python examples/make_demo.py [OUTPUT]

At that length attention (7*S*S*heads*head_dim FLOPs per layer and step, forward and backward, causal) outweighs everything else, so
the parameters are mostly in the MLPs: 2 heads of 64 beside an MLP of 704 in each of 3 layers.
"""

import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, os.pardir, "python"))

CONTEXT = 8192


def make_model(seed=0):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=256, hidden_size=256, intermediate_size=704, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=2,
        head_dim=64, max_position_embeddings=CONTEXT, rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=False, initializer_range=0.02, attention_dropout=0.0, use_cache=False, attn_implementation="sdpa",
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )
    torch.manual_seed(seed)
    return LlamaForCausalLM(config).train()


def main():
    import torch

    import autosp

    path = sys.argv[1] if len(sys.argv) > 1 else os.path.join(HERE, "demo-llama.pt2")
    model = make_model()
    ids = torch.zeros(2, 64, dtype=torch.int64)
    autosp.export(model, {"input_ids": ids, "labels": ids.clone()}, path)
    print(f"{path}: {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {os.path.getsize(path) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()

"""python -m autosp.export HF_FOLDER_OR_CONFIG -o M.pt2: exports a Hugging Face causal language model with its loss."""

import argparse
import json
import os
import sys

DTYPES = {"fp32": "float32", "float32": "float32", "bf16": "bfloat16", "bfloat16": "bfloat16", "fp16": "float16", "float16": "float16"}


def _config(source):
    from transformers import AutoConfig

    if os.path.isfile(source):
        with open(source) as f:
            fields = json.load(f)
        if "model_type" not in fields:
            raise SystemExit(f"autosp.export: {source}: no \"model_type\": this is no Hugging Face config")
        return AutoConfig.for_model(**fields)
    return AutoConfig.from_pretrained(source)


def _has_weights(source):
    return os.path.isdir(source) and any(n.endswith((".safetensors", ".bin")) for n in os.listdir(source))


def _real_buffers(config, dtype):
    """Buffers as the model computes them, without spending memory on parameters: those are dropped to meta as they are made."""
    import torch
    from transformers import AutoModelForCausalLM

    register = torch.nn.Module.register_parameter
    inits = {n: getattr(torch.nn.init, n) for n in dir(torch.nn.init) if n.endswith("_") and not n.startswith("_")}

    def register_empty(module, name, param):
        if param is not None and param.device.type != "meta":
            param = torch.nn.Parameter(param.detach().to("meta"), requires_grad=param.requires_grad)
        register(module, name, param)

    torch.nn.Module.register_parameter = register_empty
    for n in inits:
        setattr(torch.nn.init, n, lambda t, *a, **k: t)
    try:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    finally:
        torch.nn.Module.register_parameter = register
        for n, f in inits.items():
            setattr(torch.nn.init, n, f)
    return {n: b.detach().clone() for n, b in model.named_buffers() if b.device.type != "meta"}


def _checkpoint_names(model):
    """Signature name -> name in the checkpoint; tied parameters appear there once, under the first name."""
    first, names = {}, {}
    for name, p in model.named_parameters(remove_duplicate=False):
        names[name] = first.setdefault(id(p), name)
    return names


def main(argv=None):
    p = argparse.ArgumentParser(prog="python -m autosp.export", description=__doc__)
    p.add_argument("source", help="a Hugging Face model folder, a config.json, or a hub name")
    p.add_argument("-o", "--output", required=True, help="the .pt2 to write")
    p.add_argument("--meta", action="store_true", help="without weights: they come from the checkpoint's safetensors (autosp --weights)")
    p.add_argument("--dtype", default=None, choices=sorted(DTYPES), help="of the parameters (default: what the checkpoint has, else fp32)")
    p.add_argument("--batch", type=int, default=2, help="example batch (both stay free)")
    p.add_argument("--seq", type=int, default=64, help="example length")
    p.add_argument("--positions", action="store_true", help="take position_ids too, so that packed documents can be trained")
    p.add_argument("--seed", type=int, default=0, help="of random weights where there is no checkpoint")
    a = p.parse_args(argv)

    import torch
    from transformers import AutoModelForCausalLM

    from .exporter import ExportError, export

    config = _config(a.source)
    dtype = getattr(torch, DTYPES[a.dtype]) if a.dtype else None
    torch.manual_seed(a.seed)
    buffers = None
    if a.meta:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype or torch.float32, attn_implementation="sdpa")
        buffers = _real_buffers(config, dtype or torch.float32)
    elif _has_weights(a.source):
        model = AutoModelForCausalLM.from_pretrained(a.source, dtype=dtype or "auto", attn_implementation="sdpa")
    else:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype or torch.float32, attn_implementation="sdpa")
    model.train()
    device = "meta" if a.meta else "cpu"
    ids = torch.zeros(a.batch, a.seq, dtype=torch.int64, device=device)
    inputs = {"input_ids": ids, "labels": ids.clone()}
    if a.positions:
        inputs["position_ids"] = torch.zeros_like(ids) + torch.arange(a.seq, device=device)
    try:
        export(model, inputs, a.output, call_options={"use_cache": False}, buffers=buffers, checkpoint_names=_checkpoint_names(model))
    except ExportError as e:
        sys.exit(f"autosp.export: {e}")
    print(f"{a.output}: {sum(p.numel() for p in model.parameters()) / 1e6:.4g} M parameters, batch and sequence free")


if __name__ == "__main__":
    main()

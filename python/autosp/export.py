"""python -m autosp.export HF_FOLDER_OR_CONFIG -o M.pt2: exports a Hugging Face causal language model with its loss."""

import argparse
import json
import os
import sys

DTYPES = {n: n for n in ("float32", "bfloat16", "float16")} | {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


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


def _without_weights(config, dtype):
    """The model with its parameters on the meta device and all else as always: parameters are dropped as they are made, so that a
    model of any size fits."""
    import torch
    from transformers import AutoModelForCausalLM

    register = torch.nn.Module.register_parameter

    def register_empty(module, name, param):
        if param is not None and param.device.type != "meta":
            param = torch.nn.Parameter(param.detach().to("meta"), requires_grad=param.requires_grad)
        register(module, name, param)

    torch.nn.Module.register_parameter = register_empty
    try:
        return AutoModelForCausalLM.from_config(config, dtype=dtype)
    finally:
        torch.nn.Module.register_parameter = register


def _stored_names(source):
    """Names of the tensors in a folder's safetensors files."""
    import struct

    names = set()
    for file in (os.listdir(source) if os.path.isdir(source) else []):
        if file.endswith(".safetensors"):
            with open(os.path.join(source, file), "rb") as f:
                names |= set(json.loads(f.read(struct.unpack("<Q", f.read(8))[0])))
    return names


def _checkpoint_names(model, stored):
    """Signature name -> name in the checkpoint: tied parameters appear there once, under the first name, and a checkpoint of the
    bare model lacks the prefix."""
    first, names = {}, {}
    prefix = getattr(model, "base_model_prefix", "") + "."
    for name, p in model.named_parameters(remove_duplicate=False):
        names[name] = first.setdefault(id(p), name)
        if names[name] not in stored and names[name].removeprefix(prefix) in stored:
            names[name] = names[name].removeprefix(prefix)
    return names


def _load(source, meta, dtype):
    import torch
    from transformers import AutoModelForCausalLM

    config = _config(source)
    if meta:
        return _without_weights(config, dtype or getattr(config, "dtype", None) or torch.float32)
    if _has_weights(source) or not os.path.exists(source):
        return AutoModelForCausalLM.from_pretrained(source, dtype=dtype or "auto")
    return AutoModelForCausalLM.from_config(config, dtype=dtype or torch.float32)


def main(argv=None):
    p = argparse.ArgumentParser(prog="python -m autosp.export", description=__doc__)
    p.add_argument("source", help="a Hugging Face model folder, a config.json, or a hub name")
    p.add_argument("-o", "--output", required=True, help="the .pt2 to write")
    p.add_argument("--meta", action="store_true", help="without weights: autosp --weights takes them from the checkpoint")
    p.add_argument("--dtype", default=None, choices=sorted(DTYPES), help="of the parameters (default: as stored, else fp32)")
    p.add_argument("--batch", type=int, default=2, help="example batch (both stay free)")
    p.add_argument("--seq", type=int, default=64, help="example length")
    p.add_argument("--positions", action="store_true", help="take position_ids too, so that packed documents can be trained")
    p.add_argument("--seed", type=int, default=0, help="of random weights where there is no checkpoint")
    a = p.parse_args(argv)

    import torch

    from .exporter import ExportError, export

    torch.manual_seed(a.seed)
    try:
        model = _load(a.source, a.meta, getattr(torch, DTYPES[a.dtype]) if a.dtype else None)
    except (OSError, ValueError) as e:  # no such folder, no such model type, not JSON: transformers says which
        sys.exit(f"autosp.export: {a.source}: {e}")
    model.train()
    ids = torch.zeros(a.batch, a.seq, dtype=torch.int64)
    inputs = {"input_ids": ids, "labels": ids.clone()}
    if a.positions:
        inputs["position_ids"] = torch.zeros_like(ids) + torch.arange(a.seq)
    names = _checkpoint_names(model, _stored_names(a.source))
    try:
        export(model, inputs, a.output, call_options={"use_cache": False}, checkpoint_names=names)
    except (ExportError, OSError) as e:
        sys.exit(f"autosp.export: {e}")
    print(f"{a.output}: {sum(p.numel() for p in model.parameters()) / 1e6:.4g} M parameters, batch and sequence free")


if __name__ == "__main__":
    main()

"""Goldens: what PyTorch computes in float64 for a program, in the form that `autosp check --golden` reads (safetensors)."""

import copy
import json
import os
import struct

import torch

DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.int64: "I64"}
ADAMW = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
STEPS = 5


def save_safetensors(tensors, path):
    """The file appears only when it is complete."""
    header, offset = {}, 0
    for name, t in tensors.items():
        nbytes = t.numel() * t.element_size()
        header[name] = {"dtype": DTYPES[t.dtype], "shape": list(t.shape), "data_offsets": [offset, offset + nbytes]}
        offset += nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path + ".part", "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for t in tensors.values():
            f.write(t.detach().contiguous().numpy().tobytes())
    os.replace(path + ".part", path)


def _loss(model, inputs):
    out = model(**inputs)
    return out if isinstance(out, torch.Tensor) else out.loss


def compute(model, inputs):
    """name -> tensor: the inputs, the loss, the gradient of each parameter, and the losses before each of five AdamW steps.
    `model` stays as it is. Float inputs are given in float64 to the model and stored as they are."""
    m = copy.deepcopy(model).double()
    fed = {n: t.double() if t.is_floating_point() else t for n, t in inputs.items()}
    result = dict(inputs)
    loss = _loss(m, fed)
    loss.backward()
    result["loss"] = loss.detach().reshape(())
    for name, p in m.named_parameters():
        if p.requires_grad:
            grad = torch.zeros_like(p) if p.grad is None else p.grad
            result["grad." + name] = grad.float().clone()
    optimizer = torch.optim.AdamW([p for p in m.parameters() if p.requires_grad], **ADAMW)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad(set_to_none=False)
        loss = _loss(m, fed)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    result["adamw_losses"] = torch.tensor(losses, dtype=loss.dtype)
    return result

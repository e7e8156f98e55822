"""PyTorch's own bfloat16 error on the fixtures: each archive's program under autocast against its float64 golden, in the measures of
autosp check. Prints a line for each fixture: name, relative error of the loss, largest relative error of a gradient.

usage: torch_bf16.py FIXTURES_FOLDER [NAME ...]
"""
import pathlib
import sys

import torch
import transformers.integrations.moe  # noqa: F401  its operations occur in exported mixtures
from safetensors.torch import load_file


def errors(folder, binding="b2s101"):
    program = torch.export.load(folder / "model.pt2")
    golden = load_file(folder / f"{binding}.safetensors")
    module = program.module()
    for part in module.modules():  # exported checks of element types, which autocast changes; in parts run without gradients too
        if not isinstance(part, torch.fx.GraphModule):
            continue
        for node in list(part.graph.nodes):
            if "assert_tensor_metadata" in str(node.target):
                part.graph.erase_node(node)
        part.recompile()
    for p in module.parameters():
        p.requires_grad_(True)
    names = [s.arg.name for s in program.graph_signature.input_specs if s.kind == torch.export.graph_signature.InputKind.USER_INPUT]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = module(*[golden[n] for n in names])
    loss = loss[0] if isinstance(loss, (tuple, list)) else loss
    loss.backward()
    want = golden["loss"].double().reshape(())
    grads = {k[5:]: v.double() for k, v in golden.items() if k.startswith("grad.")}
    total = torch.sqrt(sum((g**2).sum() for g in grads.values()))
    mine = {}
    for name, p in module.named_parameters(remove_duplicate=False):
        if p.grad is not None:
            mine[name] = p.grad.double()
    worst = 0.0
    for name, g in grads.items():
        if name in mine:
            worst = max(worst, float((mine[name] - g).norm() / (g.norm() + 1e-4 * total)))
    return float(abs(loss.double() - want) / abs(want)), worst


def main():
    root = pathlib.Path(sys.argv[1])
    only = set(sys.argv[2:])
    for folder in sorted(p for p in root.iterdir() if (p / "model.pt2").exists()):
        if only and folder.name not in only:
            continue
        try:
            loss, grad = errors(folder)
            print(f"{folder.name} {loss:.3e} {grad:.3e}", flush=True)
        except Exception as e:  # one program that PyTorch cannot run so must not hide the others
            print(f"{folder.name} failed: {str(e).splitlines()[0][:160]}", flush=True)


main()

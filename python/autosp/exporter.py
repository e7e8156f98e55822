"""torch.export with what a training program needs: dynamic batch and sequence, real buffers, and a note of what a graph cannot say."""

import json
import os
import tempfile

import torch

ROLES = {
    "input_ids": "tokens", "tokens": "tokens", "ids": "tokens", "idx": "tokens", "x": "tokens",
    "labels": "labels", "targets": "labels", "y": "labels",
    "position_ids": "positions", "positions": "positions", "pos": "positions",
    "attention_mask": "mask", "mask": "mask",
}


class ExportError(ValueError):
    """The model or its example inputs cannot be exported as they are; the text says what to change."""


def _loss_module(model, names, call_options):
    """A module that calls `model` by keyword and returns its loss alone. torch.export wants the argument names spelled out in
    forward's signature, so forward is made for them."""
    arguments = ", ".join(names)
    source = f"def forward(self, {arguments}):\n    return self.loss_of(self.model({', '.join(f'{n}={n}' for n in names)}, **self.call_options))\n"
    scope = {}
    exec(source, scope)  # names are identifiers: they are forward's own parameters
    cls = type("TrainingLoss", (torch.nn.Module,), {"forward": scope["forward"], "loss_of": staticmethod(_loss_of)})
    wrapper = cls()
    wrapper.model = model
    wrapper.call_options = call_options
    return wrapper


def _loss_of(out):
    loss = getattr(out, "loss", None)
    if loss is None and isinstance(out, dict):
        loss = out.get("loss")
    if loss is None and isinstance(out, (tuple, list)) and out:
        loss = out[0]
    if loss is None:
        loss = out
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1 or not loss.is_floating_point():
        raise ExportError("the model must return its training loss: a scalar float tensor, or an object with .loss")
    return loss


def _named_inputs(model, example_inputs):
    if isinstance(example_inputs, dict):
        return dict(example_inputs)
    import inspect

    names = [p for p in inspect.signature(model.forward).parameters if p != "self"]
    return dict(zip(names, example_inputs))


def _reject_aliases(inputs):
    seen = {}
    for name, t in inputs.items():
        key = (t.data_ptr(), t.device) if t.device.type != "meta" else id(t)
        if t.numel() and key in seen:
            raise ExportError(
                f"inputs '{seen[key]}' and '{name}' are the same tensor: torch.export would make a program that ignores one of them; "
                f"pass {name}.clone()")
        seen[key] = name


def _dynamic_dims(inputs, seq_dim, batch_dim):
    auto = torch.export.Dim.AUTO
    shapes = {}
    for name, t in inputs.items():
        dims = {}
        for d in (batch_dim, seq_dim):
            if d is not None and d < t.dim():
                if t.shape[d] < 2:
                    raise ExportError(f"input '{name}' has size {t.shape[d]} along dim {d}: torch.export fixes sizes 0 and 1; give an example of at least 2")
                dims[d] = auto
        shapes[name] = dims or None
    return shapes


def _tied_groups(model):
    groups = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(p), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def _describe(model, inputs, roles, no_decay, checkpoint_names):
    persistent = set(model.state_dict().keys())
    computed = sorted(name for name, _ in model.named_buffers() if name not in persistent)
    note = {
        "autosp": 1,
        "tied": _tied_groups(model),
        "inputs": {name: (roles or {}).get(name, ROLES.get(name, "other")) for name in inputs},
        "computed_buffers": computed,
    }
    if no_decay:
        known = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        unknown = sorted(set(no_decay) - known)
        if unknown:
            raise ExportError(f"no_decay names parameters that the model does not have: {', '.join(unknown)}")
        note["no_decay"] = sorted(no_decay)
    if checkpoint_names:
        note["checkpoint_names"] = checkpoint_names
    return note


def _reject_missing_buffers(model):
    missing = [name for name, b in model.named_buffers() if b.device.type == "meta"]
    if missing:
        raise ExportError(f"buffers without values (on the meta device): {', '.join(missing[:5])}; buffers are part of the function, only parameters may be empty")


def export(model, example_inputs, path, seq_dim=1, batch_dim=0, roles=None, no_decay=None, checkpoint_names=None, call_options=None, buffers=None):
    """Exports a training program.

    model           an nn.Module whose forward returns the loss (a scalar, an object with .loss, or a tuple that starts with it)
    example_inputs  dict name -> tensor (or a tuple in forward's order); sizes of at least 2; no tensor passed twice
    path            the .pt2 to write (replaced only when the export succeeded)
    seq_dim         the sequence dim of the inputs; batch_dim the batch dim (None: the batch size stays fixed)
    roles           dict input -> "tokens" | "labels" | "positions" | "mask" | "other", where the name does not say it
    no_decay        names of parameters that take no weight decay
    checkpoint_names  dict parameter -> its name in a checkpoint, where they differ
    call_options    keyword arguments for forward that are no tensors
    buffers         dict name -> tensor: values for buffers of a model on the meta device

    Returns the ExportedProgram.
    """
    inputs = _named_inputs(model, example_inputs)
    bad = [n for n in inputs if not n.isidentifier()]
    if bad:
        raise ExportError(f"input names must be parameter names of the model's forward: {', '.join(bad)}")
    if not inputs or not all(isinstance(t, torch.Tensor) for t in inputs.values()):
        raise ExportError("example_inputs must be tensors: pass other arguments through call_options")
    _reject_aliases(inputs)
    if not buffers:
        _reject_missing_buffers(model)
    wrapper = _loss_module(model, list(inputs), call_options or {})
    shapes = _dynamic_dims(inputs, seq_dim, batch_dim)
    # Saved names are the model's own: the wrapper's "model." prefix is taken off below.
    program = torch.export.export(wrapper, args=(), kwargs=inputs, dynamic_shapes=shapes, strict=False)
    for name, value in (buffers or {}).items():
        full = "model." + name
        if full in program.constants:
            program.constants[full] = value
        elif full in program.state_dict:
            program.state_dict[full] = value
    _strip_prefix(program, "model.")
    note = _describe(model, inputs, roles, no_decay, checkpoint_names)
    _save(program, path, note)
    return program


def _save(program, path, note):
    """Replaces `path` only by a complete archive. torch names the archive's top folder after the file, so the file bears its final
    name from the start, in a temporary folder beside its destination."""
    path = os.path.abspath(os.fspath(path))
    with tempfile.TemporaryDirectory(dir=os.path.dirname(path), prefix=".autosp-") as folder:
        temporary = os.path.join(folder, os.path.basename(path))
        torch.export.save(program, temporary, extra_files={"autosp.json": json.dumps(note, indent=1)})
        os.replace(temporary, path)


def _strip_prefix(program, prefix):
    """Renames parameters and buffers in signature, state dict and constants, so that they are called as in model.state_dict()."""

    def short(name):
        return name[len(prefix):] if name.startswith(prefix) else name

    for spec in program.graph_signature.input_specs:
        if spec.target is not None:
            spec.target = short(spec.target)
    for table in (program.state_dict, program.constants):
        renamed = {short(name): value for name, value in table.items()}  # at once: "model.model.w" must not meet "model.w"
        table.clear()
        table.update(renamed)

"""torch.export with what a training program needs: batch and sequence free, real buffers, a note of what a graph cannot say."""

import contextlib
import inspect
import json
import keyword
import os
import tempfile

import torch
from torch.fx.experimental.symbolic_shapes import is_concrete_int

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
    passed = ", ".join(f"{n}={n}" for n in names)
    source = f"def forward(self, {arguments}):\n    return self.loss_of(self.model({passed}, **self.call_options))\n"
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
    if isinstance(example_inputs, torch.Tensor):
        example_inputs = (example_inputs,)
    if isinstance(example_inputs, dict):
        inputs = dict(example_inputs)
    else:
        names = list(inspect.signature(model.forward).parameters)
        if len(example_inputs) > len(names):
            raise ExportError(f"{len(example_inputs)} example inputs, but forward takes {len(names)}: {', '.join(names)}")
        inputs = dict(zip(names, example_inputs))
    bad = [str(n) for n in inputs if not str(n).isidentifier() or keyword.iskeyword(n)]
    if bad:
        raise ExportError(f"input names must be parameter names of the model's forward: {', '.join(bad)}")
    other = [f"{n} ({type(t).__name__})" for n, t in inputs.items() if not isinstance(t, torch.Tensor)]
    if other or not inputs:
        raise ExportError(f"example_inputs must be tensors, others go through call_options: {', '.join(other) or 'none given'}")
    return inputs


def _reject_aliases(inputs):
    seen = {}
    for name, t in inputs.items():
        key = (t.data_ptr(), t.device) if t.device.type != "meta" else id(t)
        if t.numel() and key in seen:
            raise ExportError(
                f"inputs '{seen[key]}' and '{name}' are the same tensor: torch.export would make a program that ignores one of "
                f"them; pass {name}.clone()")
        seen[key] = name


def _dynamic_dims(inputs, seq_dim, batch_dim):
    auto = torch.export.Dim.AUTO
    shapes = {}
    for name, t in inputs.items():
        dims = {}
        for d in (batch_dim, seq_dim):
            if d is not None and d < t.dim():
                if t.shape[d] < 2:
                    raise ExportError(
                        f"input '{name}' has size {t.shape[d]} along dim {d}: torch.export fixes sizes 0 and 1; give an "
                        "example of at least 2")
                dims[d] = auto
        shapes[name] = dims or None
    return shapes


def _trace(module, inputs, shapes):
    try:
        return torch.export.export(module, args=(), kwargs=inputs, dynamic_shapes=shapes, strict=False)
    except ExportError:
        raise
    except Exception as e:
        reason = (str(e).strip() or type(e).__name__).split("\n\n")[0][:1000]
        raise ExportError(
            f"torch.export cannot trace this model ({type(e).__name__}): {reason}\n"
            "Its Python must not branch on the values of tensors (layer drop, `if mask.all()`, .item()); sizes may be used freely"
        ) from e


def _reject_fixed_length(program, inputs, seq_dim):
    """torch.export makes a size a constant without a word where the model's code needs one number."""
    lengths = {n: t.shape[seq_dim] for n, t in inputs.items() if seq_dim < t.dim()}
    if not lengths:
        raise ExportError(f"no input has a dim {seq_dim}: seq_dim must be the sequence dim of the inputs")
    placed = {n.name: n.meta["val"] for n in program.graph.nodes if n.op == "placeholder"}
    for name, node in zip(inputs, program.graph_signature.user_inputs):
        # A smaller size may be something else, say the channels of a picture, and fixed with good reason.
        if lengths.get(name) == max(lengths.values()) and is_concrete_int(placed[node].shape[seq_dim]):
            raise ExportError(
                f"the model's code works only where input '{name}' has the example's length, {lengths[name]}: something in it is "
                "made for one length (a position table or mask buffer of just that size, a view with a number in it, ...); take "
                "sizes from the tensors")


def _tied_groups(model):
    groups = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(p), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def _describe(model, inputs, roles, no_decay, checkpoint_names):
    for name, role in (roles or {}).items():
        if name not in inputs or role not in set(ROLES.values()) | {"other"}:
            raise ExportError(
                f"roles: '{name}': '{role}': a role is tokens, labels, positions, mask or other, of one of {', '.join(inputs)}")
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


def _reject_missing_values(model, inputs):
    missing = [name for name, b in model.named_buffers(remove_duplicate=False) if b.device.type == "meta"]
    if missing:
        raise ExportError(
            f"buffers without values (on the meta device): {', '.join(missing[:5])}; buffers are part of the function, only "
            "parameters may be empty")
    meta = [name for name, t in inputs.items() if t.device.type == "meta"]
    if meta:
        raise ExportError(f"inputs on the meta device: {', '.join(meta)}; give them on the CPU, whatever the parameters are on")


@contextlib.contextmanager
def _empty_parameters_on_cpu(model):
    """While it lasts, parameters on the meta device are CPU tensors that nobody touches, so that they take addresses but no memory.
    On the meta device itself, tensors that forward makes (torch.tensor(0.5)) would be traced without their values."""
    places = [(m, n, p) for m in model.modules() for n, p in m._parameters.items() if p is not None and p.device.type == "meta"]
    made = {}  # one for each tied group
    try:
        for module, name, p in places:
            if id(p) not in made:
                made[id(p)] = torch.nn.Parameter(torch.empty_like(p, device="cpu"), requires_grad=p.requires_grad)
            module._parameters[name] = made[id(p)]
        yield
    finally:
        for module, name, p in places:
            module._parameters[name] = p


def export(
    model, example_inputs, path, seq_dim=1, batch_dim=0, roles=None, no_decay=None, checkpoint_names=None, call_options=None
):
    """Exports a training program.

    model           an nn.Module whose forward returns the loss (a scalar, an object with .loss, or a tuple that starts with it)
    example_inputs  dict name -> tensor (or a tuple in forward's order); sizes of at least 2; no tensor passed twice
    path            the .pt2 to write (replaced only when the export succeeded)
    seq_dim         the sequence dim of the inputs; batch_dim the batch dim (None: the batch size stays fixed)
    roles           dict input -> "tokens" | "labels" | "positions" | "mask" | "other", where the name does not say it
    no_decay        names of parameters that take no weight decay
    checkpoint_names  dict parameter -> its name in a checkpoint, where they differ
    call_options    keyword arguments for forward that are no tensors

    Parameters on the meta device are written without bytes (autosp --weights takes them from a checkpoint). Returns the
    ExportedProgram.
    """
    inputs = _named_inputs(model, example_inputs)
    _reject_aliases(inputs)
    _reject_missing_values(model, inputs)
    note = _describe(model, inputs, roles, no_decay, checkpoint_names)
    with _empty_parameters_on_cpu(model):
        program = _trace(_loss_module(model, list(inputs), call_options or {}), inputs, _dynamic_dims(inputs, seq_dim, batch_dim))
    _reject_fixed_length(program, inputs, seq_dim)
    for name, p in model.named_parameters(remove_duplicate=False):
        if p.device.type == "meta":
            program.state_dict["model." + name] = p
    _strip_prefix(program, "model.")
    _save(program, path, note)
    return program


def _save(program, path, note):
    """Replaces `path` only by a complete archive. torch names the archive's top folder after the file, so the file bears its
    final name from the start, in a temporary folder beside its destination."""
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

"""Exports PyTorch training programs as archives that the autosp command compiles.

    import autosp
    autosp.export(model, {"input_ids": ids, "labels": ids.clone()}, "model.pt2")

or, for a Hugging Face folder or config:  python -m autosp.export FOLDER -o model.pt2
"""


def export(model, example_inputs, path, seq_dim=1, **options):
    """Writes `model` (an nn.Module that returns its training loss) as a .pt2 archive. See autosp.exporter.export."""
    from .exporter import export as run

    return run(model, example_inputs, path, seq_dim=seq_dim, **options)

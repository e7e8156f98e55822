"""Tests of autosp.export; they need torch, the last class transformers too.  python -m unittest discover -s python/tests"""

import json
import os
import subprocess
import sys
import tempfile
import unittest
import zipfile

PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, PACKAGE)

import torch  # noqa: E402
import torch.nn as nn  # noqa: E402
import torch.nn.functional as F  # noqa: E402

import autosp  # noqa: E402
from autosp.exporter import ExportError  # noqa: E402


class Model(nn.Module):
    """Named so that stripping a prefix is not trivial: model.model.weight beside model.weight; a tied head; both kinds of
    buffer."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))
        self.model = nn.LayerNorm(8)
        self.embed = nn.Embedding(11, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("kept", torch.full((8,), 2.0))
        self.register_buffer("computed", torch.arange(8.0), persistent=False)

    def forward(self, tokens, labels):
        x = self.model(self.embed(tokens) * self.weight + self.computed) * self.kept
        return F.cross_entropy(self.head(x).flatten(0, 1), labels.flatten())


def inputs(b=2, s=12):
    return {"tokens": torch.arange(b * s).view(b, s) % 11, "labels": torch.ones(b, s, dtype=torch.int64)}


class Case(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.path = os.path.join(self.folder.name, "tiny.pt2")

    def archive(self, name):
        """The member that ends with `name`, parsed or raw."""
        with zipfile.ZipFile(self.path) as z:
            full = [n for n in z.namelist() if n.endswith(name)]
            self.assertEqual(len(full), 1, z.namelist())
            data = z.read(full[0])
        return json.loads(data) if name.endswith(".json") else data


class TestExport(Case):
    def test_loads_back_and_computes_the_same(self):
        torch.manual_seed(0)
        model = Model()
        autosp.export(model, inputs(), self.path)
        program = torch.export.load(self.path)
        self.assertEqual(set(program.state_dict), set(model.state_dict()))
        for b, s in ((2, 12), (1, 5), (3, 40)):
            x = inputs(b, s)
            torch.testing.assert_close(program.module()(**x), model(**x))

    def test_names_and_notes(self):
        autosp.export(Model(), inputs(), self.path, roles={"labels": "labels"}, no_decay=["weight"])
        note = self.archive("extra/autosp.json")
        self.assertEqual(note["tied"], [["embed.weight", "head.weight"]])
        self.assertEqual(note["inputs"], {"tokens": "tokens", "labels": "labels"})
        self.assertEqual(note["computed_buffers"], ["computed"])
        self.assertEqual(note["no_decay"], ["weight"])
        names = set(self.archive("model_weights_config.json")["config"])
        self.assertEqual(names, {"weight", "model.weight", "model.bias", "embed.weight", "head.weight", "kept"})
        with zipfile.ZipFile(self.path) as z:
            self.assertTrue(all(n.startswith("tiny/") for n in z.namelist()))

    def test_file_appears_whole_with_usual_permissions(self):
        autosp.export(Model(), inputs(), self.path)
        mask = os.umask(0)
        os.umask(mask)
        self.assertEqual(os.stat(self.path).st_mode & 0o777, 0o666 & ~mask)
        self.assertEqual(os.listdir(self.folder.name), ["tiny.pt2"])

    def test_failure_leaves_the_old_file(self):
        with open(self.path, "w") as f:
            f.write("old")
        with self.assertRaises(ExportError):
            autosp.export(nn.Linear(4, 4), (torch.zeros(2, 4),), self.path)
        with open(self.path) as f:
            self.assertEqual(f.read(), "old")
        self.assertEqual(os.listdir(self.folder.name), ["tiny.pt2"])

    def test_inputs_in_forward_order_and_loss_in_a_tuple(self):
        class Tuple(Model):
            def forward(self, tokens, labels):
                return super().forward(tokens, labels), tokens

        autosp.export(Tuple(), tuple(inputs().values()), self.path)
        self.assertEqual(list(self.archive("extra/autosp.json")["inputs"]), ["tokens", "labels"])

    def test_sequence_first(self):
        class SeqFirst(Model):
            def forward(self, tokens, labels):
                return super().forward(tokens.transpose(0, 1), labels.transpose(0, 1))

        x = {n: t.transpose(0, 1).contiguous() for n, t in inputs().items()}
        autosp.export(SeqFirst(), x, self.path, seq_dim=0, batch_dim=1)
        torch.export.load(self.path).module()(**{n: t.transpose(0, 1).contiguous() for n, t in inputs(3, 33).items()})

    def refused(self, text, model, x, **options):
        with self.assertRaisesRegex(ExportError, text):
            autosp.export(model, x, self.path, **options)
        self.assertFalse(os.path.exists(self.path))

    def test_refusals(self):
        ids = inputs()["tokens"]
        self.refused("same tensor.*clone", Model(), {"tokens": ids, "labels": ids})
        self.refused("same tensor", Model(), {"tokens": ids, "labels": ids.view(2, 12)})
        self.refused("at least 2", Model(), inputs(1, 12))
        self.refused("must be tensors.*labels", Model(), {"tokens": ids, "labels": 3})
        self.refused("3 example inputs", Model(), (ids, ids.clone(), ids.clone()))
        self.refused("no parameters|does not have", Model(), inputs(), no_decay=["nothing"])
        self.refused("role", Model(), inputs(), roles={"tokens": "words"})
        self.refused("role", Model(), inputs(), roles={"other": "tokens"})
        self.refused("training loss", nn.Embedding(11, 4), {"input": ids})
        self.refused("seq_dim", Model(), inputs(), seq_dim=2)

    def test_length_that_the_model_fixes_is_refused(self):
        class Table(Model):
            def forward(self, tokens, labels):
                return super().forward(tokens + torch.arange(12) * 0, labels)

        self.refused("example's length, 12", Table(), inputs())

    def test_branch_on_values_is_refused_with_a_reason(self):
        class Branch(Model):
            def forward(self, tokens, labels):
                loss = super().forward(tokens, labels)
                return loss if tokens.sum().item() > 3 else loss * 2

        self.refused("values of tensors", Branch(), inputs())

    def test_meta_parameters_real_buffers(self):
        with torch.device("meta"):
            model = Model()
        x = inputs()
        self.refused("without values.*kept", model, x)
        model.kept, model.computed = torch.full((8,), 2.0), torch.arange(8.0)
        self.refused("inputs on the meta", model, {n: t.to("meta") for n, t in x.items()})
        autosp.export(model, x, self.path)
        self.assertTrue(all(p.device.type == "meta" for p in model.parameters()))
        self.assertIs(model.head.weight, model.embed.weight)
        self.assertEqual(self.archive("extra/autosp.json")["tied"], [["embed.weight", "head.weight"]])
        self.assertEqual(self.archive("weights/weight_0"), b"")
        values = torch.frombuffer(bytearray(self.archive("constants/tensor_0")), dtype=torch.float32)
        torch.testing.assert_close(values, model.computed)

    def test_meta_keeps_tensors_made_in_forward(self):
        class Inline(Model):
            def forward(self, tokens, labels):
                return super().forward(tokens, labels) * torch.tensor(0.125)

        model = Inline()
        for module in model.modules():
            for name, p in module._parameters.items():
                module._parameters[name] = None if p is None else nn.Parameter(p.detach().to("meta"))
        autosp.export(model, inputs(), self.path)
        constants = self.archive("model_constants_config.json")["config"]
        lifted = [v["path_name"] for n, v in constants.items() if "lifted" in n]
        self.assertEqual([self.archive("constants/" + p) for p in lifted], [torch.tensor(0.125).numpy().tobytes()])


class TestCommand(Case):
    def run_export(self, *arguments):
        env = dict(os.environ, PYTHONPATH=PACKAGE)
        return subprocess.run([sys.executable, "-m", "autosp.export", *arguments], env=env, capture_output=True, text=True)

    def test_meta_keeps_tied_groups_and_rotary_frequencies(self):
        config = os.path.join(self.folder.name, "config.json")
        with open(config, "w") as f:
            json.dump({
                "model_type": "llama", "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
                "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True, "dtype": "bfloat16",
            }, f)
        done = self.run_export(config, "-o", self.path, "--meta", "--positions")
        self.assertEqual(done.returncode, 0, done.stderr)
        note = self.archive("extra/autosp.json")
        self.assertEqual(note["tied"], [["model.embed_tokens.weight", "lm_head.weight"]])
        self.assertEqual(note["checkpoint_names"]["lm_head.weight"], "model.embed_tokens.weight")
        self.assertEqual(note["inputs"], {"input_ids": "tokens", "labels": "labels", "position_ids": "positions"})
        rates = torch.frombuffer(bytearray(self.archive("constants/tensor_0")), dtype=torch.float32)
        torch.testing.assert_close(rates, 1.0 / 10000.0 ** (torch.arange(0, 8, 2) / 8))

    def test_says_what_is_wrong(self):
        bad = os.path.join(self.folder.name, "config.json")
        with open(bad, "w") as f:
            f.write("{}")
        done = self.run_export(bad, "-o", self.path)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("model_type", done.stderr)
        self.assertNotIn("Traceback", done.stderr)


if __name__ == "__main__":
    unittest.main()

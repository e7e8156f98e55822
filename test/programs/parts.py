"""What the test programs share: the list of programs, their inputs, and a few small layers."""

import torch
import torch.nn as nn
import torch.nn.functional as F

VOCAB = 61
WIDTH = 16
HEADS = 2
PROGRAMS = {}


class Program:
    def __init__(self, module, why, bindings, make_inputs, example):
        self.module, self.why, self.bindings, self.make_inputs, self.example = module, why, bindings, make_inputs, example

    def build(self):
        torch.manual_seed(1)
        return self.module().train()

    def inputs(self, batch, seq):
        torch.manual_seed(100 * batch + seq)
        return self.make_inputs(batch, seq)


def text_inputs(batch, seq):
    """Token ids, and the same as labels with the first fifth ignored, as in the fixtures."""
    tokens = torch.randint(0, VOCAB, (batch, seq))
    labels = tokens.clone()
    labels[:, : seq // 5] = -100
    return {"tokens": tokens, "labels": labels}


def program(bindings=((2, 24), (1, 7), (3, 13)), inputs=text_inputs, example=(2, 24)):
    """Registers a module class whose forward returns the loss. Its docstring says what it is for."""

    def register(cls):
        PROGRAMS[cls.__name__] = Program(cls, " ".join(cls.__doc__.split()), bindings, inputs, example)
        return cls

    return register


def shifted_loss(logits, labels, **options):
    return F.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1), **options)


def split_heads(x, heads):
    """[B, S, heads*D] -> [B, heads, S, D]"""
    b, s, w = x.shape
    return x.view(b, s, heads, w // heads).transpose(1, 2)


def join_heads(x):
    b, h, s, d = x.shape
    return x.transpose(1, 2).reshape(b, s, h * d)


class Mlp(nn.Module):
    def __init__(self, width=WIDTH, hidden=40):
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x):
        return self.down(F.gelu(self.up(x)))


class Attention(nn.Module):
    """Plain attention through scaled_dot_product_attention; `mask` is passed through, None is causal."""

    def __init__(self, width=WIDTH, heads=HEADS, kv_heads=None):
        super().__init__()
        self.heads, self.kv_heads = heads, kv_heads or heads
        d = width // heads
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(width, 2 * self.kv_heads * d, bias=False)
        self.o = nn.Linear(width, width, bias=False)

    def forward(self, x, mask=None, causal=True, memory=None):
        k, v = self.kv(x if memory is None else memory).chunk(2, dim=-1)
        q, k, v = split_heads(self.q(x), self.heads), split_heads(k, self.kv_heads), split_heads(v, self.kv_heads)
        gqa = self.heads != self.kv_heads
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal and mask is None, enable_gqa=gqa)
        return self.o(join_heads(y))


class Ends(nn.Module):
    """Embedding in front, norm and head at the end; subclasses write `body`: [B, S, WIDTH] -> [B, S, WIDTH]."""

    def __init__(self, width=WIDTH):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCAB, bias=False)

    def logits(self, tokens):
        return self.head(self.norm(self.body(self.embed(tokens))))

    def forward(self, tokens, labels):
        return shifted_loss(self.logits(tokens), labels)

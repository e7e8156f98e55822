"""Programs whose difficulty is the loss or how it is put together."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from parts import VOCAB, WIDTH, Attention, Ends, Mlp, program, shifted_loss, text_inputs


@program()
class z_loss(Ends):
    """Cross entropy, a z-loss on the logits' log-sum-exp, and a penalty on activations, added."""

    def __init__(self):
        super().__init__()
        self.attention = Attention()

    def forward(self, tokens, labels):
        x = self.embed(tokens)
        x = x + self.attention(x)
        logits = self.head(self.norm(x))
        z = torch.logsumexp(logits[:, :-1], dim=-1)
        return shifted_loss(logits, labels) + 1e-2 * z.pow(2).mean() + 1e-3 * x.square().sum(-1).sqrt().mean()


@program()
class sum_loss(Ends):
    """Sum, not mean, ignoring label 3; logits cut after they were flattened to [B*S]."""

    def __init__(self):
        super().__init__()
        self.attention, self.mlp = Attention(), Mlp()

    def forward(self, tokens, labels):
        x = self.embed(tokens)
        x = x + self.attention(x)
        logits = self.head(self.norm(x + self.mlp(x))).reshape(-1, VOCAB)[:-1]
        labels = labels.clamp(min=0).reshape(-1)[1:]
        return F.cross_entropy(logits, labels, ignore_index=3, reduction="sum") / 50


@program()
class nll_with_weights(Ends):
    """log_softmax and nll_loss with a weight for each class; the logits are capped by tanh."""

    def __init__(self):
        super().__init__()
        self.attention = Attention(heads=4, kv_heads=2)
        self.register_buffer("weight", torch.linspace(0.2, 2.0, VOCAB))

    def forward(self, tokens, labels):
        x = self.embed(tokens)
        x = x + self.attention(x)
        logits = 10 * torch.tanh(self.head(self.norm(x)) / 10)
        return F.nll_loss(logits.log_softmax(-1)[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), weight=self.weight)


def weighted_inputs(batch, seq):
    return text_inputs(batch, seq) | {"token_weight": torch.rand(batch, seq)}


@program(inputs=weighted_inputs)
class weighted_tokens(Ends):
    """Each token's loss times a weight that is a float input; divided by the sum of the weights."""

    def __init__(self):
        super().__init__()
        self.attention = Attention()

    def forward(self, tokens, labels, token_weight):
        x = self.embed(tokens)
        logits = self.head(self.norm(x + self.attention(x)))
        each = F.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none")
        weight = token_weight[:, 1:] * (labels[:, 1:] != -100)
        return (each * weight).sum() / weight.sum()


@program()
class two_ahead(Ends):
    """Two heads, for the next token and the one after it, with one shared body; label smoothing on one of them."""

    def __init__(self):
        super().__init__()
        self.attention, self.far = Attention(), nn.Linear(WIDTH, WIDTH)

    def forward(self, tokens, labels):
        x = self.embed(tokens)
        x = x + self.attention(x)
        near = shifted_loss(self.head(self.norm(x)), labels, label_smoothing=0.1)
        logits = self.head(self.norm(x + F.silu(self.far(x))))
        far = F.cross_entropy(logits[:, :-2].flatten(0, 1), labels[:, 2:].flatten())
        return near + 0.3 * far


@program()
class distilled(Ends):
    """A frozen teacher under no_grad, the KL divergence to it, and cross entropy."""

    def __init__(self):
        super().__init__()
        self.attention = Attention()
        self.teacher = nn.Sequential(nn.Embedding(VOCAB, 8), nn.Linear(8, VOCAB))
        self.teacher.requires_grad_(False)

    def forward(self, tokens, labels):
        with torch.no_grad():
            target = self.teacher(tokens).log_softmax(-1)
        x = self.embed(tokens)
        logits = self.head(self.norm(x + self.attention(x)))
        kl = F.kl_div(logits.log_softmax(-1), target, log_target=True, reduction="none").sum(-1).mean()
        return 0.5 * kl + 0.5 * shifted_loss(logits, labels)


def series_inputs(batch, seq):
    values = torch.randn(batch, seq, 3)
    return {"values": values, "targets": values.cumsum(1) * 0.3}


@program(inputs=series_inputs)
class regression(nn.Module):
    """No tokens at all: float inputs [B, S, 3], a GRU-like gate over a running mean, mean squared and absolute errors added."""

    def __init__(self):
        super().__init__()
        self.first, self.attention, self.last = nn.Linear(3, WIDTH), Attention(), nn.Linear(WIDTH, 3)

    def forward(self, values, targets):
        x = torch.tanh(self.first(values))
        x = x + self.attention(x)
        error = self.last(x)[:, :-1] - targets[:, 1:]
        huber = F.smooth_l1_loss(error, torch.zeros_like(error))
        return F.mse_loss(self.last(x)[:, :-1], targets[:, 1:]) + 0.1 * error.abs().mean() + 0.1 * huber

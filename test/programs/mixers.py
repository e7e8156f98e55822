"""Programs that mix tokens without attention, or move the sequence about: convolutions, scans, shifts, norms over it."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from parts import VOCAB, WIDTH, Attention, Ends, Mlp, program, shifted_loss


@program()
class gated_conv(Ends):
    """A stack of causal dilated convolutions with gates, padded by hand; no attention."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv1d(WIDTH, 2 * WIDTH, 5, dilation=d, groups=4) for d in (1, 2, 4))

    def body(self, x):
        y = x.transpose(1, 2)
        for conv in self.convs:
            y = y + F.glu(conv(F.pad(y, (4 * conv.dilation[0], 0))), dim=1)
        return y.transpose(1, 2)


@program()
class same_conv(Ends):
    """Convolutions that keep the length (padding on both sides, full channel mixing) and a norm over batch and sequence."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv1d(WIDTH, WIDTH, 3, padding="same")
        self.second = nn.Conv1d(WIDTH, WIDTH, 5, padding=4, dilation=2)
        self.gain = nn.Parameter(torch.ones(WIDTH, 1))

    def body(self, x):
        y = F.relu(self.first(x.transpose(1, 2)))
        mean, var = y.mean(dim=(0, 2), keepdim=True), y.var(dim=(0, 2), keepdim=True, unbiased=False)
        y = (y - mean) * torch.rsqrt(var + 1e-5) * self.gain
        return x + self.second(y).transpose(1, 2)

    def forward(self, tokens, labels):
        return F.cross_entropy(self.logits(tokens).transpose(1, 2), labels)


@program()
class linear_attention(Ends):
    """Causal linear attention: running sums of the outer products of keys and values along the sequence."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(WIDTH, 4), nn.Linear(WIDTH, 4), nn.Linear(WIDTH, WIDTH)

    def body(self, x):
        q, k, v = F.elu(self.q(x)) + 1, F.elu(self.k(x)) + 1, self.v(x)
        state = torch.cumsum(k[..., :, None] * v[..., None, :], dim=1)
        total = torch.cumsum(k, dim=1)
        return x + torch.einsum("bsk,bskv->bsv", q, state) / (q * total).sum(-1, keepdim=True)


@program()
class token_shift(Ends):
    """RWKV's token shift (a pad that cuts the last step off), learned mixing, squared ReLU, a receptance gate."""

    def __init__(self):
        super().__init__()
        self.mix_k, self.mix_r = nn.Parameter(torch.rand(WIDTH)), nn.Parameter(torch.rand(WIDTH))
        self.key, self.value, self.gate = nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH), nn.Linear(WIDTH, WIDTH)

    def body(self, x):
        for _ in range(2):
            before = F.pad(x, (0, 0, 1, -1))
            k = torch.lerp(before, x, self.mix_k)
            r = x * self.mix_r + before * (1 - self.mix_r)
            x = x + torch.sigmoid(self.gate(r)) * self.value(torch.relu(self.key(k)) ** 2)
        return x


@program()
class looped_seq_first(nn.Module):
    """One block applied three times, [S, B, H] inside, positions learned, the head tied, logits flattened to [S*B]."""

    def __init__(self):
        super().__init__()
        self.embed, self.positions = nn.Embedding(VOCAB, WIDTH), nn.Embedding(64, WIDTH)
        self.norm, self.qkv, self.o, self.mlp = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH), Mlp()
        self.head = nn.Linear(WIDTH, VOCAB, bias=False)
        self.head.weight = self.embed.weight

    def block(self, x):
        s, b, w = x.shape
        q, k, v = self.qkv(self.norm(x)).view(s, b * 2, 3, w // 2).permute(2, 1, 0, 3).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(y.transpose(0, 1).reshape(s, b, w))
        return x + self.mlp(x)

    def forward(self, tokens, labels):
        x = (self.embed(tokens) + self.positions(torch.arange(tokens.shape[1]))).transpose(0, 1)
        for _ in range(3):
            x = self.block(x)
        logits = self.head(x)[:-1].reshape(-1, VOCAB)
        return F.cross_entropy(logits, labels.transpose(0, 1)[1:].reshape(-1))


@program()
class one_hot_experts(Ends):
    """Top-1 experts as dense one-hot dispatch by einsum; the balance loss is a mean over all tokens, added to the loss."""

    def __init__(self):
        super().__init__()
        self.attention, self.router = Attention(), nn.Linear(WIDTH, 4, bias=False)
        self.up, self.down = nn.Parameter(torch.randn(4, WIDTH, 24) * 0.2), nn.Parameter(torch.randn(4, 24, WIDTH) * 0.2)

    def forward(self, tokens, labels):
        x = self.embed(tokens)
        x = x + self.attention(x)
        p = self.router(x).softmax(-1)
        top, expert = p.max(-1)
        sent = F.one_hot(expert, 4).to(x.dtype)
        y = torch.einsum("bse,bsw->bsew", sent, x)
        y = torch.einsum("bseh,ehw->bsew", F.silu(torch.einsum("bsew,ewh->bseh", y, self.up)), self.down)
        x = x + top[..., None] * (y * sent[..., None]).sum(2)
        balance = 4 * (sent.mean((0, 1)) * p.mean((0, 1))).sum()
        return shifted_loss(self.head(self.norm(x)), labels) + 0.01 * balance


@program()
class retention(Ends):
    """Scores times a decay of the distance, without softmax: a quadratic form of the sequence that is no attention."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))

    def body(self, x):
        at = torch.arange(x.shape[1]).to(x.dtype)
        back = at[:, None] - at[None, :]
        decay = torch.where(back >= 0, 0.9 ** back.clamp(min=0), 0.0)
        return x + (self.q(x) @ self.k(x).transpose(1, 2) * decay) @ self.v(x) / WIDTH


@program()
class hourglass(Ends):
    """Half the length in the middle: a convolution of stride 2 down, attention, each step repeated twice on the way up."""

    def __init__(self):
        super().__init__()
        self.down, self.attention, self.up = nn.Conv1d(WIDTH, WIDTH, 2, stride=2), Attention(), nn.Linear(WIDTH, WIDTH)

    def body(self, x):
        s = x.shape[1]
        y = self.down(F.pad(x.transpose(1, 2), (2, 1))).transpose(1, 2)
        y = y + self.attention(y)
        return x + self.up(torch.repeat_interleave(y, 2, dim=1))[:, :s]


@program()
class sequence_statistics(Ends):
    """Softmax, maximum, norm and standard deviation over the sequence, given back to every token; the loss needs no shift."""

    def __init__(self):
        super().__init__()
        self.score, self.mix = nn.Linear(WIDTH, 1), nn.Linear(3 * WIDTH, WIDTH)

    def body(self, x):
        pooled = (self.score(x).softmax(dim=1) * x).sum(1, keepdim=True)
        most = x.amax(dim=1, keepdim=True)
        spread = x.std(dim=1, keepdim=True) + x.norm(dim=1, keepdim=True)
        return x + self.mix(torch.cat([pooled, most, spread], dim=-1))

    def forward(self, tokens, labels):
        return F.cross_entropy(self.logits(tokens).flatten(0, 1), labels.flatten())


@program()
class both_directions(Ends):
    """Decayed running sums forwards and backwards (flip), neighbours by roll."""

    def __init__(self):
        super().__init__()
        self.forwards, self.backwards = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def body(self, x):
        count = torch.arange(1, x.shape[1] + 1)[:, None].to(x.dtype)
        ahead = torch.cumsum(self.forwards(x), 1) / count
        behind = torch.cumsum(self.backwards(x).flip(1), 1).flip(1) / count.flip(0)
        return torch.tanh(ahead + behind) + torch.roll(x, 1, dims=1) - 0.5 * torch.roll(x, -2, dims=1)

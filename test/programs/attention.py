"""Programs whose difficulty is an attention: its mask, its biases, what it shares, how it is written."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from parts import HEADS, VOCAB, WIDTH, Attention, Ends, Mlp, join_heads, program, shifted_loss, split_heads


@program()
class alibi(Ends):
    """ALiBi: a float bias made of positions and per-head slopes (a buffer), joined with the causal mask."""

    def __init__(self):
        super().__init__()
        self.attention, self.mlp = Attention(heads=4), Mlp()
        self.register_buffer("slopes", 2.0 ** -torch.arange(1.0, 5.0))

    def body(self, x):
        at = torch.arange(x.shape[1])
        distance = (at[None, :] - at[:, None]).to(x.dtype)
        bias = self.slopes[:, None, None] * distance
        bias = bias.masked_fill(at[None, :] > at[:, None], float("-inf"))
        x = x + self.attention(x, mask=bias[None])
        return x + self.mlp(x)


@program()
class prefix_lm(Ends):
    """A prefix, whose length a token says, sees itself in both directions; the rest is causal."""

    def __init__(self):
        super().__init__()
        self.attention, self.mlp = Attention(heads=4, kv_heads=2), Mlp()

    def forward(self, tokens, labels):
        at = torch.arange(tokens.shape[1])
        prefix = (tokens[:, 0] % 9)[:, None, None, None]
        mask = (at[None, :] <= at[:, None])[None, None] | (at[None, None, None, :] < prefix)
        x = self.embed(tokens)
        x = x + self.attention(x, mask=mask)
        x = x + self.mlp(x)
        return shifted_loss(self.head(self.norm(x)), labels)


@program()
class doc_window_softcap(Ends):
    """Documents, a window and a soft cap in an attention written with einsum, masked by finfo.min."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.o = nn.Linear(WIDTH, WIDTH)

    def forward(self, tokens, labels):
        x = self.embed(tokens)
        b, s, _ = x.shape
        document = torch.cumsum(tokens < 6, dim=1)
        at = torch.arange(s)
        near = (at[:, None] - at[None, :] < 9) & (at[:, None] >= at[None, :])
        mask = near[None] & (document[:, :, None] == document[:, None, :])
        q, k, v = (f(x).view(b, s, HEADS, -1) for f in (self.q, self.k, self.v))
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(WIDTH // HEADS)
        scores = 5.0 * torch.tanh(scores / 5.0)
        scores = scores.masked_fill(~mask[:, None], torch.finfo(x.dtype).min)
        y = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v).reshape(b, s, -1)
        return shifted_loss(self.head(self.norm(x + self.o(y))), labels)


@program(bindings=((2, 64), (1, 7), (3, 40)), example=(2, 64))
class packed_documents(Ends):
    """Documents counted by a separator token: causal within each, then both ways; heads of 16 channels, two to a KV head."""

    def __init__(self):
        super().__init__()
        self.q, self.kv = nn.Linear(WIDTH, 64, bias=False), nn.Linear(WIDTH, 64, bias=False)
        self.o, self.mlp = nn.Linear(64, WIDTH, bias=False), Mlp()

    def attend(self, x, mask):
        q, (k, v) = split_heads(self.q(x), 4), (split_heads(y, 2) for y in self.kv(x).chunk(2, dim=-1))
        return self.o(join_heads(F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None], enable_gqa=True)))

    def forward(self, tokens, labels):
        x = self.embed(tokens)
        document = torch.cumsum(tokens < 6, dim=1) - 1
        same = document[:, :, None] == document[:, None, :]
        at = torch.arange(x.shape[1])
        x = x + self.attend(x, same & (at[None, :] <= at[:, None]))
        x = x + self.mlp(x)
        x = x + self.attend(x, same)
        return shifted_loss(self.head(self.norm(x)), labels)


def pair_inputs(batch, seq):
    tokens = torch.randint(0, VOCAB, (batch, seq))
    return {"source": torch.randint(0, VOCAB, (batch, seq)), "tokens": tokens, "labels": tokens.clone()}


@program(inputs=pair_inputs)
class encoder_decoder(Ends):
    """Encoder and decoder in one program: bidirectional, causal and cross-attention, two token inputs."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder, self.cross = Attention(), Attention(), Attention()
        self.mlp_source, self.mlp = Mlp(), Mlp()

    def forward(self, source, tokens, labels):
        memory = self.embed(source)
        memory = memory + self.encoder(memory, causal=False)
        memory = memory + self.mlp_source(memory)
        x = self.embed(tokens)
        x = x + self.decoder(x)
        x = x + self.cross(x, causal=False, memory=memory)
        return shifted_loss(self.head(self.norm(x + self.mlp(x))), labels)


@program()
class shared_kv(Ends):
    """Two attentions of one block share keys and values: one sees a window, one everything, with different head counts."""

    def __init__(self):
        super().__init__()
        self.q_near, self.q_far = nn.Linear(WIDTH, 16, bias=False), nn.Linear(WIDTH, 32, bias=False)
        self.kv = nn.Linear(WIDTH, 16, bias=False)
        self.o = nn.Linear(48, WIDTH)

    def body(self, x):
        s = x.shape[1]
        at = torch.arange(s)
        back = at[:, None] - at[None, :]
        k, v = (split_heads(t, 1) for t in self.kv(x).chunk(2, -1))
        near = F.scaled_dot_product_attention(
            split_heads(self.q_near(x), 2), k, v, attn_mask=(back >= 0) & (back < 5), enable_gqa=True)
        far = F.scaled_dot_product_attention(split_heads(self.q_far(x), 4), k, v, is_causal=True, enable_gqa=True, scale=0.2)
        return x + self.o(torch.cat([join_heads(near), join_heads(far)], dim=-1))


@program()
class parallel_rotary(Ends):
    """GPT-J's block: attention and MLP side by side, rotary pairs interleaved, on a part of each head."""

    def __init__(self):
        super().__init__()
        self.qkv, self.o = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.first, self.mlp = nn.LayerNorm(WIDTH), Mlp()
        self.register_buffer("rates", 1.0 / 100.0 ** (torch.arange(0, 4, 2) / 4), persistent=False)

    def rotate(self, x):
        """[B, H, S, 8]: the first 4 of a head turn, pairs (0, 1) and (2, 3)"""
        angle = torch.arange(x.shape[2])[:, None].to(x.dtype) * self.rates
        turn, rest = x[..., :4], x[..., 4:]
        a, b = turn[..., ::2], turn[..., 1::2]
        turned = torch.stack([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], dim=-1).flatten(-2)
        return torch.cat([turned, rest], dim=-1)

    def body(self, x):
        y = self.first(x)
        q, k, v = (split_heads(t, HEADS) for t in self.qkv(y).split(WIDTH, dim=-1))
        z = F.scaled_dot_product_attention(self.rotate(q), self.rotate(k), v, is_causal=True)
        return x + self.o(join_heads(z)) + self.mlp(y)


@program(bindings=((2, 24), (1, 8), (3, 20)))
class block_local(Ends):
    """Attention within blocks of 4, made by a view: the length must be a multiple of 4, which the archive's guard says."""

    def __init__(self):
        super().__init__()
        self.qkv, self.o = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def body(self, x):
        b, s, w = x.shape
        q, k, v = self.qkv(x).view(b, s // 4, 4, 3, HEADS, w // HEADS).permute(3, 0, 1, 4, 2, 5).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        return x + self.o(y.transpose(2, 3).reshape(b, s, w))


@program()
class mha_module(Ends):
    """nn.MultiheadAttention as it comes, training, with a float mask made from torch.triu and dropout of probability 0."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, dropout=0.0, batch_first=True)
        self.drop = nn.Dropout(0.0)

    def body(self, x):
        mask = torch.triu(torch.full((x.shape[1], x.shape[1]), float("-inf"), dtype=x.dtype), diagonal=1)
        y, _ = self.attention(x, x, x, attn_mask=mask, need_weights=False)
        return x + self.drop(y)


def class_inputs(batch, seq):
    tokens = torch.randint(0, VOCAB, (batch, seq))
    tokens[:, seq - seq // 4:] = 0
    return {"tokens": tokens, "labels": torch.randint(0, 5, (batch,))}


@program(inputs=class_inputs)
class pooled_classifier(nn.Module):
    """nn.TransformerEncoderLayer with a padding mask, the mean over what is no padding, one class per row: label smoothing, class
    weights."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, WIDTH, padding_idx=0)
        self.layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 32, dropout=0.0, batch_first=True, norm_first=True)
        self.head = nn.Linear(WIDTH, 5)
        self.register_buffer("weight", torch.tensor([1.0, 0.5, 2.0, 1.5, 0.25]))

    def forward(self, tokens, labels):
        pad = tokens == 0
        x = self.layer(self.embed(tokens), src_key_padding_mask=pad)
        keep = (~pad).to(x.dtype)[..., None]
        pooled = (x * keep).sum(1) / keep.sum(1).clamp(min=1)
        return F.cross_entropy(self.head(pooled), labels, weight=self.weight, label_smoothing=0.1)


@program()
class learned_bias(Ends):
    """T5's relative bias: learned per head and bucket, so that a bias over query and key has a gradient."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Embedding(8, HEADS)
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))

    def body(self, x):
        at = torch.arange(x.shape[1])
        back = at[:, None] - at[None, :]
        bias = self.bias(back.clamp(0, 7)).permute(2, 0, 1)[None]
        q, k, v = (split_heads(f(x), HEADS) for f in (self.q, self.k, self.v))
        scores = q @ k.transpose(-1, -2) + bias
        scores = scores.masked_fill(back[None, None] < 0, float("-inf"))
        return x + self.o(join_heads(scores.softmax(-1) @ v))


@program()
class differential(Ends):
    """Differential attention: the difference of two softmaxes with a learned weight; values twice as wide as keys."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.o = nn.Linear(WIDTH, WIDTH)
        self.weight = nn.Parameter(torch.full((HEADS, 1, 1), 0.3))

    def body(self, x):
        q1, q2 = (split_heads(t, HEADS) for t in self.q(x).chunk(2, -1))
        k1, k2 = (split_heads(t, HEADS) for t in self.k(x).chunk(2, -1))
        v = split_heads(self.v(x), HEADS)
        y = F.scaled_dot_product_attention(q1, k1, v, is_causal=True)
        y = y - self.weight * F.scaled_dot_product_attention(q2, k2, v, is_causal=True)
        return x + self.o(F.rms_norm(join_heads(y), (WIDTH,)))


@program()
class registers(Ends):
    """Learned tokens in front of the sequence: the length inside is S + 3, and the outputs of the three are cut off again."""

    def __init__(self):
        super().__init__()
        self.memory = nn.Parameter(torch.randn(1, 3, WIDTH))
        self.first, self.second = Attention(), Attention(heads=4, kv_heads=1)

    def body(self, x):
        x = torch.cat([self.memory.expand(x.shape[0], -1, -1), x], dim=1)
        x = x + self.first(x)
        x = x + self.second(x)
        return x[:, 3:]


@program()
class attention_by_hand(Ends):
    """Attention as baddbmm, a tril of ones, where, softmax in float, bmm; keys normalised; scale learned per head."""

    def __init__(self):
        super().__init__()
        self.qkv, self.o = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.scale = nn.Parameter(torch.tensor([2.0, 3.0]).view(HEADS, 1, 1))

    def body(self, x):
        b, s, _ = x.shape
        q, k, v = (split_heads(t, HEADS) for t in self.qkv(x).chunk(3, -1))
        q, k = F.normalize(q, dim=-1) * self.scale, F.normalize(k, dim=-1)
        allowed = torch.tril(torch.ones(s, s)) > 0
        scores = torch.bmm(q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2))
        scores = torch.where(allowed, scores, torch.full_like(scores, -1e4))
        y = torch.bmm(scores.softmax(-1), v.flatten(0, 1))
        return x + self.o(join_heads(y.view(b, HEADS, s, -1)))

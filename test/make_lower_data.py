"""Makes test/data/lower: small programs that cover the ATen operations, with PyTorch's own results.

    python make_lower_data.py OUT [--each] [NAME...]

A case is a function of (m, x, ids): m has parameters, x = m.emb[ids] is [B, S, 8] in float64, ids is int64 [B, S]. What it
returns is weighted and summed; a family's program is the sum of its cases. Programs are exported at one size with batch and
sequence dynamic, and the results are for another. --each writes one program per case instead (to find the one that fails).
"""
import math, os, sys, tempfile, zipfile
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

torch.set_default_dtype(torch.float64)  # the exporter then stores no float32 rounding
CASES = {}


def case(f):
    family, _, name = f.__name__.partition("__")
    CASES.setdefault(family, []).append((name, f))
    return f


class Program(torch.nn.Module):
    def __init__(s, cases):
        super().__init__()
        g = torch.Generator().manual_seed(7)
        r = lambda *n: torch.nn.Parameter(torch.randn(*n, generator=g, dtype=torch.float64) * 0.7)
        s.emb, s.w, s.v, s.u = r(16, 8), r(8, 8), r(8), r(6, 8)
        s.conv, s.dw, s.experts = r(6, 4, 3), r(8, 1, 4), r(4, 8, 6)
        s.register_buffer("tri", torch.tril(torch.ones(16, 16, dtype=torch.bool)))
        s.register_buffer("cis", torch.polar(torch.ones(16, 2), torch.outer(torch.arange(16.0), torch.tensor([1.0, 0.1]))))
        s.register_buffer("mean", torch.zeros(8, dtype=torch.float64))
        s.register_buffer("var", torch.ones(8, dtype=torch.float64))
        s.register_buffer("table", torch.arange(16, dtype=torch.int64) % 5)
        s.cases = cases

    def forward(s, input_ids):
        x = s.emb[input_ids]
        total = (x * 0).sum()
        for k, f in enumerate(s.cases):
            out = f(s, x, input_ids)
            for o in out if isinstance(out, (tuple, list)) else (out,):
                o = o.to(torch.float64)
                weight = torch.cos(torch.arange(o.numel(), dtype=torch.float64) * (0.7 + 0.01 * k) + 0.3).reshape(o.shape)
                total = total + (o * weight).sum()
        return total


# ---- pointwise -------------------------------------------------------------------------------------------------------------
@case
def pointwise__unary(m, x, i):
    p = x.abs() + 0.5
    return [x.exp(), x.expm1(), p.log(), p.log1p(), p.sqrt(), p.rsqrt(), x.sin(), x.cos(), x.tanh(), x.erf(), x.abs(), -x, x.sign(),
            x.exp2(), p.log2(), p.log10(), p.reciprocal(), x.square(), (x * 0.3).tan(), x.sinh(), x.cosh(), x.erfc(), (x.tanh() * 0.9).atanh()]
@case
def pointwise__rounding(m, x, i):
    h = i.to(torch.float64) * 0.5 - 3
    return [(x * 3).floor(), (x * 3).ceil(), (x * 3).trunc(), (x * 3).round(), h.round(), (x * 3).frac(), i.floor(), torch.fix(h)]
@case
def pointwise__classify(m, x, i):
    y = torch.where(i.unsqueeze(-1) == 3, float("nan"), torch.where(i.unsqueeze(-1) == 4, float("inf"), x))
    return [y.isnan(), y.isinf(), y.isfinite(), torch.isposinf(y), torch.nan_to_num(y, 1.0, 2.0, -2.0), torch.logit(x.sigmoid()),
            torch.logit(x.sigmoid(), 0.3), torch.isclose(x, x + 1e-9)]
@case
def pointwise__arith(m, x, i):
    return [x + 1, 1 - x, x - m.v, x * i.unsqueeze(-1), x / 3, 3 / (x.abs() + 1), i / 4, i // 3, (i - 8) // 3, i % 3, (i - 8) % 3, x % 0.7,
            torch.fmod(x, 0.7), torch.fmod(i - 8, 3), torch.div(x.detach(), 0.3, rounding_mode="floor"), torch.div(i - 8, 3, rounding_mode="trunc"),
            torch.add(x, m.v, alpha=2.5), torch.sub(i, 1, alpha=2), torch.rsub(x, 2), x.detach() // 0.5, i * 2.5, (i > 3) + 1, (i > 3) * x[..., 0],
            (i > 3) + (i < 5), (i > 3) * (i < 5), i * True, i + 0.5]
@case
def pointwise__power(m, x, i):
    p = x.abs() + 0.3
    return [x ** 2, x ** 3, p ** 0.5, p ** -0.5, p ** -1, p ** 1.7, x ** 4, i ** 2, i ** 2.0, 2 ** x, 2.0 ** i, p ** x, x ** 0, p ** i.unsqueeze(-1)]
@case
def pointwise__compare(m, x, i):
    y = m.w[0]
    return [x > y, x >= 0, x < y, x <= 0.1, i == 3, i != i.flip(1), (i > 3) & (i < 9), (i > 3) | (i < 2), (i > 3) ^ (i < 9), ~(i > 3), ~i,
            torch.logical_and(i, i > 4), torch.logical_or(i > 3, x[..., 0] > 0), torch.logical_xor(i > 3, i > 5), torch.logical_not(x),
            (i > 2) == (i > 4), i > 2.5, torch.maximum(x, y), torch.minimum(x, y), torch.max(i, i.flip(1)), torch.min(x, y)]
@case
def pointwise__choice(m, x, i):
    c = x > 0
    return [torch.where(c, x, 0.0), torch.where(c, 1.5, x), torch.where(c, x, m.v), torch.where(c, 1, 0), x.masked_fill(c, 2.0),
            x.masked_fill(i.unsqueeze(-1) > 4, m.v[0]), x.clamp(-0.5, 0.5), x.clamp(min=0.1), x.clamp(max=m.v), i.clamp(2, 5), x.clamp_min(0.2),
            x.clamp_max(0.2), torch.lerp(x, m.v, 0.3), torch.addcmul(x, x, m.v, value=0.5), torch.addcdiv(x, m.v, x.abs() + 1),
            torch.logaddexp(x, m.v), torch.xlogy(x.abs(), x.abs() + 1), i.masked_fill(i > 4, -100)]
@case
def pointwise__kinks(m, x, i):
    # exact zeros and ties: gradients at corners
    z = x * (i.unsqueeze(-1) > 5)
    return [z.relu(), F.leaky_relu(z), F.hardtanh(z, 0, 1), z.clamp(0, 1), z.abs(), torch.maximum(z, z * 0), F.elu(z), F.relu6(z),
            F.softplus(z), F.logsigmoid(z), F.hardswish(z), z.norm(dim=-1), F.softshrink(z), torch.linalg.vector_norm(z, dim=-1), z.amax(-1), z.max(-1).values]


# ---- activations -----------------------------------------------------------------------------------------------------------
@case
def activation__all(m, x, i):
    y = x * 4
    return [y.sigmoid(), F.silu(y), F.gelu(y), F.gelu(y, approximate="tanh"), y.relu(), F.leaky_relu(y, 0.2), F.elu(y, 1.3), F.selu(y), F.celu(y, 0.7),
            F.hardtanh(y, -1.5, 2), F.relu6(y), F.hardsigmoid(y), F.hardswish(y), F.mish(y), F.softplus(y, 2.0, 5.0), F.logsigmoid(y * 10),
            F.softsign(y), F.threshold(y, 0.1, 2.0), F.hardshrink(y), F.softshrink(y, 0.3), F.tanhshrink(y), F.glu(y), F.glu(y, 1) if False else y,
            F.prelu(y, m.v[:1]), F.prelu(y.transpose(1, 2), m.v)]
@case
def activation__softmax(m, x, i):
    return [x.softmax(-1), x.softmax(1), F.log_softmax(x, 0), F.log_softmax(x, -1), F.softmin(x, -1), torch.softmax(i, -1, dtype=torch.float64),
            F.softmax(x, -1, dtype=torch.float64), x.logsumexp(-1), x.logsumexp((0, 2)), x.logsumexp(1, keepdim=True)]
@case
def activation__no_dropout(m, x, i):
    return [F.dropout(x, 0.0), F.dropout(x, 0.5, training=False), F.alpha_dropout(x, 0.3, training=False)]


# ---- shapes ----------------------------------------------------------------------------------------------------------------
@case
def shape__views(m, x, i):
    B, S, H = x.shape
    return [x.view(B, S, 2, 4), x.reshape(-1, 4), x.view(B * S, H), x.flatten(1), x.flatten(0, 1), x.unflatten(2, (2, -1)), x.unsqueeze(1).squeeze(1),
            x[:, None].squeeze(), x.unsqueeze(-1), x.permute(2, 0, 1), x.transpose(0, 1), x[0].t(), x.mT, x.swapaxes(0, 2), x.movedim(0, 2),
            x.movedim((0, 1), (2, 0)), x.ravel(), x[0].T, torch.atleast_3d(m.v), x.view_as(x.reshape(B, S, H)), x.numel() * m.v]
@case
def shape__expand(m, x, i):
    B, S, H = x.shape
    return [m.v.expand(B, S, H), x[:, :1].expand(-1, S, -1), m.v.expand_as(x), x[:, :, None].expand(B, S, 3, H).reshape(B, S * 3, H),
            torch.broadcast_to(m.v, (3, 8)), x.repeat(2, 1, 1), x.repeat(2, 1, 2, 3), x.tile(2), m.v.tile(2, 3), x.repeat_interleave(3, 1),
            m.v.repeat_interleave(2), x.repeat_interleave(2), torch.broadcast_tensors(x, m.v)[1], torch.meshgrid(m.v, m.w[0, :3], indexing="ij")[1],
            torch.meshgrid(m.v, m.w[0, :3], indexing="xy")[0]]
@case
def shape__slices(m, x, i):
    B, S, H = x.shape
    return [x[:, 1:], x[:, :-1], x[:, ::2], x[..., 1::3], x[:, -2:], x[:, 0], x[..., -1], x[:, 1:, 2], x.narrow(2, 3, 4), x[:, S // 2:], x[:, : S // 2],
            x.select(1, -1), x[:, 100:], x[0].diagonal(), x[0].diagonal(1), x.diagonal(-1, 1, 2), x[0, :4, :4].trace(), x.unfold(2, 3, 2), x.unfold(1, 2, 1)]
@case
def shape__split(m, x, i):
    a, b = x.chunk(2, -1)
    c, d, e = x.split([1, 3, 4], -1)
    f, g, h = x.split(3, -1)
    j, k, n = torch.tensor_split(x, 3, -1)
    p, q = torch.tensor_split(x, [5], 2)
    u = m.u.unbind(0)
    return [a * 2, b, c, d, e, f, g, h, j, k, n, p, q, u[3], u[0], torch.hsplit(x, [2])[1] if False else a]
@case
def shape__join(m, x, i):
    return [torch.cat([x, x * 2], 1), torch.cat([x, m.v.expand_as(x)], -1), torch.stack([x, -x], 1), torch.stack([m.v, m.v * 2], -1), torch.cat([i, i > 3], 0),
            torch.hstack([x, x]), torch.vstack([m.v, m.v]), torch.cat([x, i.unsqueeze(-1)], -1)]
@case
def shape__roll(m, x, i):
    return [x.roll(1, 1), x.roll(-2, 2), x.roll(3), x.roll((1, 2), (0, 2)), x.flip(1), x.flip(0, 2), torch.fliplr(i), torch.flipud(i)]
@case
def shape__pad(m, x, i):
    return [F.pad(x, (1, 2)), F.pad(x, (0, 0, 2, 0)), F.pad(x, (0, 0, 1, -1)), F.pad(x, (1, 1), value=3.0), F.pad(i, (0, 1), value=-100), F.pad(x, (2, 1), mode="replicate"),
            F.pad(x, (2, 1), mode="reflect"), F.pad(x, (2, 1), mode="circular"), F.pad(i, (1, 0), value=0) == 0]
@case
def shape__triangles(m, x, i):
    B, S, H = x.shape
    s = x @ x.transpose(1, 2)
    return [s.tril(), s.triu(1), s.tril(-1), torch.ones(S, S, dtype=torch.bool).tril(), torch.full((S, S), float(2)).triu(1), m.tri[:S, :S], torch.diag_embed(m.v),
            m.w.triu(-2), torch.tril(m.tri, -1)]
@case
def shape__scatter_views(m, x, i):
    return [torch.slice_scatter(x, x[:, :2] * 3, 1, 0, 2), torch.slice_scatter(x, m.w[:, :4].sum() * x[..., :4], 2, 0, 8, 2), torch.select_scatter(x, m.v.expand(x.shape[0], 8), 1, 1)]


# ---- creation --------------------------------------------------------------------------------------------------------------
@case
def create__all(m, x, i):
    B, S, H = x.shape
    return [torch.zeros(B, S), torch.ones(S), torch.full((B, S), 2.5), torch.full((S,), 3), torch.zeros_like(x), torch.ones_like(i), torch.full_like(i, 7), x.new_zeros(S, 2),
            x.new_ones(S), x.new_full((2, S), 1.5), torch.empty_like(x).fill_(2.0), torch.arange(S), torch.arange(2, S + 2), torch.arange(0, 2 * S, 2), torch.arange(S, dtype=torch.float64),
            torch.arange(0, 1, 0.3), torch.arange(S, 0, -1), torch.linspace(0, 1, 7), torch.linspace(-1, 2, 5), torch.eye(4), torch.eye(3, 5), F.one_hot(i, 16),
            torch.tensor(2.5) * x, torch.tensor([1.0, 2.0]), torch.arange(0.5, 4.0), torch.scalar_tensor(3.0), i.new_zeros(S), torch.outer(torch.arange(S), m.v)]
@case
def create__casts(m, x, i):
    return [x.to(torch.int64), i.to(torch.float32), x.bool(), (i > 3).long(), (i > 3).to(torch.uint8), x.half().float() * 0, i.type_as(x), x.to(i), (x * 3).int(),
            x.double(), i.bool(), x.clone(), x.contiguous(), x.detach() * x, i.to(torch.int32) + 1]


# ---- reductions ------------------------------------------------------------------------------------------------------------
@case
def reduce__sums(m, x, i):
    return [x.sum(), x.sum(1), x.sum((0, 2)), x.sum(-1, keepdim=True), i.sum(), (i > 3).sum(), (i > 3).sum(1), x.mean(), x.mean(1), x.mean((0, 1), keepdim=True), x.mean(-1),
            i.sum(1, dtype=torch.float64), i.double().mean(), x.nansum(1), i.to(torch.float64).mean(1)]
@case
def reduce__extrema(m, x, i):
    y, a = x.max(1)
    z, b = x.min(-1, keepdim=True)
    return [x.amax(1), x.amin((0, 2)), x.amax(), x.max(), x.min(), y, a, z, b, x.argmax(-1), x.argmin(1), x.argmax(), i.max(), i.min(1).values, i.argmax(1), x.argmax(1, keepdim=True),
            x.detach().aminmax(dim=1)[1], i.amax(1), i.amin(1)]
@case
def reduce__counts(m, x, i):
    return [(i > 3).any(), (i > 3).all(), (i > 3).any(1), (i > 3).all(1), (i > 30).any(), (i >= 0).all(), torch.count_nonzero(i > 3), i.any(1), x.any(-1)]
@case
def reduce__moments(m, x, i):
    a, b = torch.var_mean(x, -1)
    return [x.var(-1), x.var(1, unbiased=False), x.std(), x.std(-1, keepdim=True), x.var((1, 2), correction=0), a, b, torch.std_mean(x, 1)[0], x.std(correction=2, dim=-1)]
@case
def reduce__norms(m, x, i):
    return [x.norm(), x.norm(dim=-1), x.norm(1, dim=1), x.norm(float("inf"), dim=-1), torch.linalg.vector_norm(x, 3, dim=-1), torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True),
            F.normalize(x, dim=-1), F.cosine_similarity(x, m.v.expand_as(x), dim=-1), torch.linalg.vector_norm(x, 0), x.norm(p=2, dim=-1, keepdim=True)]
@case
def reduce__scans(m, x, i):
    return [x.cumsum(1), i.cumsum(-1), (i > 3).cumsum(1), x.diff(dim=1), i.diff(dim=1, prepend=i[:, :1] - 1), x.diff(n=2, dim=-1), i.diff(dim=1, append=i[:, :1]), i.cumsum(1, dtype=torch.float64),
            (i > 3).diff(dim=1)]
@case
def reduce__order(m, x, i):
    x = x + torch.arange(x.numel()).view_as(x) * 1e-3  # no ties
    a, b = x.sort(1)
    c, d = x.sort(-1, descending=True)
    e, f = x.topk(3, -1)
    g, h = x.topk(2, 1, largest=False)
    s = i.reshape(-1).sort(stable=True)
    return [a, b, c, d, e, f, g, h, x.argsort(1), s[0], s[1], x.reshape(-1).msort(), torch.histc(i.double(), bins=16, min=0, max=15), torch.histc(x, bins=5, min=-1, max=1),
            i.reshape(-1).argsort(stable=True)]


# ---- indexing --------------------------------------------------------------------------------------------------------------
@case
def index__read(m, x, i):
    B, S, H = x.shape
    b, s = torch.arange(B), torch.arange(S)
    j = i % S
    return [m.w[i % 8], m.emb[i], m.table[i], x[:, j[0]], x[b[:, None], j], x[b, 0], x[b[:, None], :, i % 8], m.tri[s[:, None], s[None, :]], m.u[-1 - i % 6], m.w[i % 8, (i + 1) % 8],
            x[..., m.table % 8], x.index_select(1, j[0]), m.w.take(i), F.embedding(i, m.emb, padding_idx=3), x[b[:, None, None], j[:, :, None], torch.arange(8)],
            m.table[m.table], x[:, torch.tensor([0, -1])]]
@case
def index__gather(m, x, i):
    j = (i % 8).unsqueeze(-1)
    return [x.gather(-1, j), x.gather(1, (i % 2).unsqueeze(-1).expand(-1, -1, 8)), x.gather(-1, j).squeeze(-1), torch.take_along_dim(m.w, m.w.argsort(1), 1)]
@case
def index__scatter(m, x, i):
    j = (i % 8).unsqueeze(-1)
    z = torch.zeros_like(x)
    return [z.scatter_add(-1, j, x[..., :1]), x.scatter(-1, j, 5.0), x.scatter(-1, j, x[..., :1] * 2), z.scatter_add(1, (i % 2).unsqueeze(-1).expand(-1, -1, 8), x),
            z.scatter_reduce(-1, j, x[..., 2:3], "sum"), torch.zeros(8, dtype=torch.int64).scatter_add(0, i.reshape(-1) % 8, torch.ones_like(i.reshape(-1)))]
@case
def index__write(m, x, i):
    B, S, H = x.shape
    flat = x.reshape(B * S, H)
    b = torch.arange(B)
    p = flat[:, 0].argsort()
    a = torch.zeros(16, H, dtype=x.dtype).index_add(0, i.reshape(-1), flat)
    c = flat.index_copy(0, p, flat * 2)
    d = x.index_fill(2, torch.tensor([1, 3]), 0.5)
    e = torch.zeros_like(x).index_put((b, torch.zeros_like(b)), m.v)
    f = torch.zeros(16, H, dtype=x.dtype).index_put((i,), x, accumulate=True)
    g = x.index_put((i > 4,), torch.tensor(2.0, dtype=x.dtype))
    h = torch.zeros_like(x).index_put((b[:, None], torch.arange(S)[None], i % 8), x[..., 0] * 3)
    inv = torch.empty_like(p).index_put((p,), torch.arange(B * S))
    q = x.index_add(1, torch.tensor([0, 0]), x[:, :2], alpha=0.5)
    return [a, c, d, e, f, g, h, inv, flat[p][inv], q]


# ---- in place --------------------------------------------------------------------------------------------------------------
@case
def inplace__plain(m, x, i):
    y = x * 2
    y += m.v
    y.mul_(x).clamp_(-2, 2)
    y.masked_fill_(i.unsqueeze(-1) == 3, 0.25)
    z = torch.zeros_like(x)
    z.copy_(m.v)
    z.add_(y, alpha=0.5).div_(3)
    w = x.clone()
    w.sub_(0.1).neg_().mul_(2)
    k = i.clone()
    k[k > 7] = -1
    return [y, z, w, k, torch.empty_like(x).zero_(), torch.full_like(x, 2).pow_(2)]
@case
def inplace__slices(m, x, i):
    y = x.clone()
    y[:, 0] = m.v
    y[:, 1:3] *= 2
    y[..., ::2] = y[..., 1::2] * 3
    t = y.transpose(1, 2)
    t[:, 1] += 1
    v = y.view(y.shape[0], -1)
    v[:, -1] = 9
    y[:, :, 2:4].fill_(0.5)
    z = torch.zeros(x.shape[0], x.shape[1] + 2, 8, dtype=x.dtype)
    z[:, 1:-1] = x
    a = z[..., :4]
    a.add_(z[..., 4:])
    z.unsqueeze(1)[:, 0, 0].sub_(1)
    s = i.clone()
    s[:, :-1] = i[:, 1:]
    s[:, -1] = -100
    z[:, 2::3, 1] = 4
    return [y, t, v, z, a, s]
@case
def inplace__indexed(m, x, i):
    b = torch.arange(x.shape[0])
    y = torch.zeros_like(x)
    y[b, 0] = m.v
    y[b[:, None], torch.arange(x.shape[1]), i % 8] += 1.5
    y.index_add_(2, torch.tensor([1]), x[..., :1])
    y.scatter_(-1, (i % 8).unsqueeze(-1), 2.0)
    y.scatter_add_(-1, ((i + 1) % 8).unsqueeze(-1), x[..., 3:4])
    return [y]
@case
def inplace__nograd(m, x, i):
    with torch.no_grad():
        c = x * 2
        p = x[:, :1]
        c = c + 1
    with torch.no_grad():
        d = (i > 3).double()
        d = d.masked_fill(d > 0.5, 3.0)
    d.add_(1)
    e = x.detach().clone()
    e[:, 0] = 1
    k = i.clone()
    with torch.no_grad():
        k[:, 0] = 7
        k.add_(1)
    return [c * x, p * x, d, e * x, x.detach(), k]


# ---- products --------------------------------------------------------------------------------------------------------------
@case
def product__matmul(m, x, i):
    B, S, H = x.shape
    w, v = m.w, m.v
    return [x @ w, w @ w, v @ w, w @ v, v @ v, x @ v, v @ x.transpose(1, 2), w @ x.transpose(1, 2), x @ x.transpose(1, 2), x.unsqueeze(1) @ w.expand(3, 8, 8), torch.bmm(x, x.transpose(1, 2)),
            torch.mm(w, w), w.mv(v), v.dot(v), F.linear(x, w, v), F.linear(x, w), F.linear(x, v), torch.addmm(v, x[0], w), torch.addmm(v, x[0], w, beta=0.5, alpha=2),
            torch.baddbmm(x, x, w.expand(B, 8, 8), beta=0.3), torch.outer(v, v), torch.inner(x, w), torch.tensordot(x, w, 1), torch.tensordot(x, x, ([0, 1], [0, 1])),
            x[:, None, :, :] @ x[:, None].transpose(2, 3), torch.ones(1, 4, 1, dtype=x.dtype) @ x[..., :1].transpose(1, 2), torch.addmv(v, w, v), torch.addr(w, v, v)]
@case
def product__einsum(m, x, i):
    B, S, H = x.shape
    q = x.view(B, S, 2, 4)
    e = torch.einsum
    return [e("bsh,ho->bso", x, m.w), e("bshd,bthd->bhst", q, q), e("bhst,bthd->bshd", e("bshd,bthd->bhst", q, q), q), e("bsh->sb", x), e("bsh->h", x), e("...h,oh->...o", x, m.w),
            e("bsh,bsh->bs", x, x), e("i,j->ij", m.v, m.v), e("bsh,h,ho->bo", x, m.v, m.w), e("bsh,bsg", x, x), e("ij", m.w), e("ji", m.w), e("bi,ij,bj->b", x[:, 0], m.w, x[:, 1]),
            e("b s h, b t h -> b s t", x, x), e("...ij,...jk->...ik", x, m.w), e("bsh,os->bo", x, x[0, :, :3].t())]
@case
def product__conv(m, x, i):
    t = x.transpose(1, 2)
    b = m.v[:6]
    return [F.conv1d(t[:, :4], m.conv, b, padding=1), F.conv1d(t[:, :4], m.conv, padding="same"), F.conv1d(t[:, :4], m.conv, stride=2, padding=2), F.conv1d(t, m.dw, padding=3, groups=8)[..., : x.shape[1]],
            F.conv1d(t[:, :4], m.conv, padding=2, dilation=2), F.conv1d(t[:, :4], m.conv, padding="valid"), F.conv1d(t, m.dw, m.v, padding="same", groups=8), F.conv1d(t[0, :4], m.conv, padding=1)]


# ---- complex numbers -------------------------------------------------------------------------------------------------------
@case
def complex__rotary(m, x, i):
    # rotary embedding as the first Llama wrote it, with a complex buffer; and with polar in the program
    B, S, H = x.shape
    f = m.cis[:S].view(1, S, 1, 2)
    q = x.view(B, S, 2, 4)
    c = torch.view_as_complex(q.reshape(B, S, 2, 2, 2))
    a = torch.view_as_real(c * f).flatten(3)
    ang = torch.outer(torch.arange(S).double(), m.v[:2].abs())
    p = torch.polar(torch.ones_like(ang), ang)[None, :, None, :]
    d = torch.view_as_complex(q.unflatten(-1, (-1, 2)).contiguous()) * p.conj()
    return [a, torch.view_as_real(d).flatten(2), c.abs(), (c + d).real, (c * 2.0 - d).imag, torch.view_as_real(c.transpose(1, 2)[:, :, 0])]


# ---- norms -----------------------------------------------------------------------------------------------------------------
@case
def norm__all(m, x, i):
    t = x.transpose(1, 2)
    return [F.layer_norm(x, (8,), m.v, m.w[0]), F.layer_norm(x, (8,)), F.layer_norm(x, (8,), m.v), F.rms_norm(x, (8,), m.v, 1e-5), F.rms_norm(x, (8,)), F.group_norm(t, 2, m.v, m.w[0]), F.group_norm(t, 4),
            F.instance_norm(t), F.batch_norm(t, m.v.detach() * 0, m.w[0].detach() ** 2 + 1, m.v, m.w[0]), F.layer_norm(x.unflatten(2, (2, 4)), (2, 4), eps=1e-3),
            F.batch_norm(t, None, None, m.v, training=True)]


# ---- losses ----------------------------------------------------------------------------------------------------------------
@case
def loss__cross_entropy(m, x, i):
    y = x.reshape(-1, 8)
    t = torch.where(i > 11, -100, i % 8).reshape(-1)
    w = m.v.detach().abs() + 0.1
    p = torch.softmax(m.w[0] * y.detach(), -1)
    ce = F.cross_entropy
    return [ce(y, t), ce(y, t, reduction="sum"), ce(y, t, reduction="none"), ce(y, t, weight=w), ce(y, t, label_smoothing=0.1), ce(y, t, weight=w, label_smoothing=0.2), ce(y, t, weight=w, reduction="none", label_smoothing=0.2),
            ce(x.transpose(1, 2), i % 8), ce(x.transpose(1, 2), torch.where(i > 11, -100, i % 8), reduction="none"), ce(y, t.clamp(min=0), ignore_index=2), ce(x[0, 0], t[0].clamp(min=0)), ce(x[0, 0], p[0]),
            ce(y[:4], p[:4], label_smoothing=0.3, weight=w), F.nll_loss(F.log_softmax(y, -1), t), F.nll_loss(F.log_softmax(y, -1), t, weight=w, reduction="sum"), ce(y, t, weight=w, reduction="sum", label_smoothing=0.1),
            F.nll_loss(F.log_softmax(x.transpose(1, 2), 1), i % 8)]
@case
def loss__other(m, x, i):
    y = (m.w[0] * x).tanh()
    pr, tg = x.sigmoid(), (i.unsqueeze(-1) % 2).double().expand_as(x)
    return [F.mse_loss(x, y), F.l1_loss(x, y), F.mse_loss(x, y, reduction="none"), F.smooth_l1_loss(x, y, beta=0.4), F.huber_loss(x, y, delta=0.6), F.binary_cross_entropy_with_logits(x * 9, tg),
            F.binary_cross_entropy_with_logits(x, tg, pos_weight=m.v.detach().abs(), weight=m.v.detach()), F.binary_cross_entropy(pr, tg), F.kl_div(F.log_softmax(x, -1), F.softmax(y, -1), reduction="batchmean"),
            F.kl_div(F.log_softmax(x, -1), F.log_softmax(y, -1), log_target=True), F.kl_div(F.log_softmax(x, -1), tg, reduction="sum"), F.smooth_l1_loss(x, y, beta=0.0)]


# ---- attention and experts -------------------------------------------------------------------------------------------------
@case
def attention__forms(m, x, i):
    B, S, H = x.shape
    q = x.view(B, S, 4, 2).transpose(1, 2)
    k = (x @ m.w)[..., :4].view(B, S, 2, 2).transpose(1, 2)
    f = F.scaled_dot_product_attention
    causal = torch.ones(S, S, dtype=torch.bool).tril()
    bias = (torch.arange(S)[None] - torch.arange(S)[:, None]).double() * 0.1
    doc = (i // 4)[:, None, :, None] == (i // 4)[:, None, None, :]
    return [f(q, q, q), f(q, q, q, is_causal=True), f(q, q, q, attn_mask=causal), f(q, q, q, attn_mask=bias), f(q, k, k, enable_gqa=True), f(q, k, k, is_causal=True, enable_gqa=True, scale=0.3),
            f(x, x, x, is_causal=True), f(q, q, q, attn_mask=doc & causal), f(q, k.repeat_interleave(2, 1), k.repeat_interleave(2, 1), is_causal=True), f(q, k[:, :1], k[:, :1]), f(x[0], x[0], x[0]),
            f(q, q[:, :, : S - 1], q[:, :, : S - 1]), f(x, x, x, attn_mask=causal)]
@case
def attention__by_hand(m, x, i):
    B, S, H = x.shape
    q = x.view(B, S, 2, 4).transpose(1, 2)
    s = q @ q.transpose(-1, -2) * 0.5
    c = torch.ones(S, S).tril()
    a = s.masked_fill(c == 0, float("-inf")).softmax(-1) @ q
    b = (s + torch.triu(torch.full((S, S), float("-inf")), 1)).softmax(-1) @ q
    d = torch.where(m.tri[:S, :S], 5 * torch.tanh(s / 5), torch.finfo(s.dtype).min).softmax(-1) @ q
    return [a, b, d]
@case
def experts__dense(m, x, i):
    flat = x.reshape(-1, 8)
    p = (flat @ m.w[:, :4]).softmax(-1)
    w, e = p.topk(2, -1)
    out = 0
    for k in range(4):
        out = out + (flat @ m.experts[k]) * (w * (e == k)).sum(-1, keepdim=True)
    return out


# ---- sizes as numbers, subgraphs -------------------------------------------------------------------------------------------
@case
def control__numbers(m, x, i):
    B, S, H = x.shape
    n = max(S // 2, 1)
    return [x / math.sqrt(H), x * S, x[:, :n], x / S ** 0.5, x * (B * S + 1), x[:, : S - 2], x * (1.0 / (B + S)), torch.arange(S - 1), x * (S / 3), x.view(B, -1) * B, x * torch.sym_max(S, 4)]
@case
def control__regions(m, x, i):
    with torch.no_grad():
        scale = x.abs().amax(-1, keepdim=True)
    with torch.autocast("cpu", enabled=False):
        y = x @ m.w
    with torch.no_grad():
        z = x * 2
        with torch.enable_grad():
            u = z * m.v
    return [x * scale, y, u]


# ---- what must be refused: the docstring is part of the error ------------------------------------------------------------------
REFUSED = {}


def refused(text):
    return lambda f: REFUSED.setdefault(f.__name__, (f, text)) and f


@refused("selection by a bool mask")
def bool_index(m, x, i): return x[i > 3].sum()
@refused("depends on the data")
def item(m, x, i): return x * i.sum().item()
@refused("depends on the data")
def masked_select(m, x, i): return x.masked_select(x > 0).sum()
@refused("cumsum is the one")
def cumprod(m, x, i): return x.cumprod(1)
@refused("a product of all elements")
def prod(m, x, i): return x.prod()
@refused("running statistics")
def batch_norm(m, x, i): return F.batch_norm(x.transpose(1, 2), m.mean, m.var, training=True)
@refused("in-place write to a buffer")
def buffer_write(m, x, i):
    m.table.add_(1)
    return x * m.table[0]
@refused("may or may not share")
def doubtful_view(m, x, i):
    y = x * 2
    z = y.transpose(1, 2).reshape(x.shape[0], -1)
    z.add_(1)
    return y
@refused("a detached tensor")
def detached_write(m, x, i):
    y = x * 2
    y.detach().mul_(2)
    return y
@refused("8- or 16-bit")
def narrow(m, x, i): return x * (i.to(torch.int8) + 100).unsqueeze(-1)
@refused("operation on complex tensors")
def complex_exp(m, x, i): return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (4, 2)).contiguous()).exp())
@refused("no lowering")
def fourier(m, x, i): return torch.fft.rfft(x, dim=-1).abs()
@refused("other than conv1d")
def conv2d(m, x, i): return F.conv2d(x.unsqueeze(1), m.dw[:1].unsqueeze(1))
@refused("control flow")
def cond(m, x, i): return torch.cond(i.sum() > 3, lambda y: y * 2, lambda y: y - 1, (x,))
@refused("random permutation")
def randperm(m, x, i): return x[..., torch.randperm(8)]
@refused("order statistics")
def median(m, x, i): return x.median()
@refused("alpha and feature dropout")
def alpha_dropout(m, x, i): return F.alpha_dropout(x, 0.5, training=True)
@refused("bit operations")
def bits(m, x, i): return x * (i & 3).unsqueeze(-1)
@refused("a single floating number")
def no_loss(m, x, i): return None


def export_refused(name, out):
    f, text = REFUSED[name]
    model = Program([f])
    if name == "no_loss":
        model.forward = lambda input_ids: model.emb[input_ids] * 2
    export_archive(model, name, out)
    with open(os.path.join(out, name + ".txt"), "w") as t:
        t.write(text + "\n")


def export_archive(model, name, out):
    g = torch.Generator().manual_seed(3)
    example = torch.randint(0, 16, (3, 9), generator=g)
    ep = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO},))
    with tempfile.TemporaryDirectory() as tmp:
        raw = os.path.join(tmp, "m.pt2")
        torch.export.save(ep, raw)
        with zipfile.ZipFile(raw) as src, zipfile.ZipFile(os.path.join(out, name + ".pt2"), "w", zipfile.ZIP_DEFLATED) as dst:
            for info in src.infolist():
                if "sample_inputs" not in info.filename:
                    dst.writestr(zipfile.ZipInfo(info.filename), src.read(info), zipfile.ZIP_DEFLATED)


def export(name, fns, out):
    model = Program(fns)
    export_archive(model, name, out)
    ids = torch.randint(0, 16, (2, 5), generator=torch.Generator().manual_seed(5))
    loss = model(ids)
    loss.backward()
    gold = {"input_ids": ids, "loss": loss.detach().reshape(())}
    for k, p in model.named_parameters():
        gold["grad." + k] = torch.zeros_like(p) if p.grad is None else p.grad
    save_file({k: v.contiguous() for k, v in gold.items()}, os.path.join(out, name + ".safetensors"))


def main():
    out, each, names = sys.argv[1], "--each" in sys.argv, [a for a in sys.argv[2:] if a != "--each"]
    os.makedirs(out, exist_ok=True)
    for family, cases in CASES.items():
        for name, fns in [(family + "__" + n, [f]) for n, f in cases] if each else [(family, [f for _, f in cases])]:
            if names and not any(name.startswith(n) for n in names):
                continue
            try:
                export(name, fns, out)
            except Exception as e:
                print("export of", name, "failed:", type(e).__name__, str(e)[:600])
    os.makedirs(os.path.join(out, "refuse"), exist_ok=True)
    for name in REFUSED:
        if names and not any(("refuse/" + name).startswith(n) for n in names):
            continue
        try:
            export_refused(name, os.path.join(out, "refuse"))
        except Exception as e:
            print("export of", name, "failed:", type(e).__name__, str(e)[:600])


if __name__ == "__main__":
    main()

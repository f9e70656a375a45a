"""GatedFwaLM in PyTorch: the architecture of io.github.gatedfwa.zoo.lm.GatedFwaLM, parameter for parameter.

A decoder-only language model over bytes: embedding, pre-norm blocks of attention and SwiGLU, a last
RMSNorm, an output projection of its own with a bias. Every parameter has the name and the shape
[in, out] that it has in Deeplearning4j, and products are x @ W, so that importing is copying.

Shapes: B windows, N bytes, H heads, D head size, w attention window, C compressed blocks,
S selection blocks.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

BYTES = 256
ROPE_BASE = 10000
NORM_EPS = 1e-6
GATE_EPS = 1e-3
GATE_BIAS = 2.0


@dataclass(frozen=True)
class Config:
    width: int
    blocks: int
    heads: int
    hidden: int
    window: int = 256  # bytes that a query sees, itself included; 0 for all before it
    gated: bool = True  # GatedFWA's decay; without it plain attention
    nsa_every: int = 0  # native sparse attention in every n-th block; 0 for none


SIZES = {
    "tiny": dict(width=256, blocks=4, heads=4, hidden=640),
    "small": dict(width=384, blocks=6, heads=6, hidden=1152),
}

VARIANTS = {
    "full": dict(window=0, gated=False),
    "window": dict(gated=False),
    "gatedfwa": dict(),
    "gatedfwa+nsa": dict(nsa_every=2),
}


class GatedFwaLM(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embedding = Embedding(config.width)
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.blocks))
        self.norm = RMSNorm(config.width)
        self.output = Output(config.width)

    def forward(self, tokens):
        """Logits [B, N, 256] of the byte that follows each of tokens [B, N]."""
        rotation = rope_tables(tokens.shape[1], self.config.width // self.config.heads, tokens.device)
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, rotation)
        return self.output(self.norm(x))


class Embedding(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.W = nn.Parameter(torch.randn(BYTES, width))

    def forward(self, tokens):
        return F.embedding(tokens, self.W)


class Output(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.W = matrix(width, BYTES)
        self.b = nn.Parameter(torch.zeros(BYTES))

    def forward(self, x):
        return x @ self.W + self.b


class RMSNorm(nn.Module):
    """y = g * x / sqrt(mean(x^2) + eps)."""

    def __init__(self, width):
        super().__init__()
        self.g = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return rms_normalise(x) * self.g


class Block(nn.Module):
    def __init__(self, config, index):
        super().__init__()
        sparse = config.nsa_every > 0 and (index + 1) % config.nsa_every == 0
        self.attention_norm = RMSNorm(config.width)
        self.attention = (NativeSparseAttention if sparse else GatedFWA)(config)
        self.ffn_norm = RMSNorm(config.width)
        self.ffn = SwiGLU(config.width, config.hidden, config.blocks)

    def forward(self, x, rotation):
        x = x + self.attention(self.attention_norm(x), rotation)
        return x + self.ffn(self.ffn_norm(x))


class SwiGLU(nn.Module):
    """y = (silu(x W1) * (x W3)) W2."""

    def __init__(self, width, hidden, blocks):
        super().__init__()
        self.W1 = matrix(width, hidden)
        self.W3 = matrix(width, hidden)
        self.W2 = matrix(hidden, width, (2 * blocks) ** -0.5)

    def forward(self, x):
        return (F.silu(x @ self.W1) * (x @ self.W3)) @ self.W2


class GatedFWA(nn.Module):
    """Gated flash windowed attention (arXiv 2512.07782), or plain attention if not config.gated.

    Keys and values are shifted: k_t = a_t k~_{t-1} + (1 - a_t) k~_t with a_t = sigmoid(x_t WshiftK).
    Queries and keys turn by their position (RoPE), then each head is normalised. The gate:

        h = x Wg + bg,   beta = 1 + elu(x Wbeta),   alpha = softplus(-beta h) / (beta + eps)
    """

    def __init__(self, config):
        super().__init__()
        width, heads = config.width, config.heads
        self.heads = heads
        self.window = config.window
        self.gated = config.gated
        self.Wq = matrix(width, width)
        self.Wk = matrix(width, width)
        self.Wv = matrix(width, width)
        if config.gated:
            self.Wg = nn.Parameter(0.02 * torch.randn(width, heads))
            self.Wbeta = nn.Parameter(torch.zeros(width, heads))
            self.bg = nn.Parameter(torch.full((heads,), GATE_BIAS))
        self.WshiftK = nn.Parameter(0.02 * torch.randn(width, heads))
        self.WshiftV = nn.Parameter(0.02 * torch.randn(width, heads))
        self.Wo = matrix(width, width, (2 * config.blocks) ** -0.5)

    def forward(self, x, rotation):
        q = rms_normalise(rotate(self.split(x @ self.Wq), rotation))
        o = self.attend(x, q, self.split(x @ self.Wk), self.split(x @ self.Wv), rotation)
        return self.concatenate(o)

    def attend(self, x, q, k, v, rotation):
        """Attention of turned queries to keys and values as they come from the projection."""
        k = shift(k, torch.sigmoid(x @ self.WshiftK))
        v = shift(v, torch.sigmoid(x @ self.WshiftV))
        k = rms_normalise(rotate(k, rotation)).to(q.dtype)
        if self.window == 0:
            return F.scaled_dot_product_attention(q, k, v.to(q.dtype), is_causal=True)
        return windowed_attention(q, k, v, self.decay(x), self.window)

    def decay(self, x):
        """alpha [B, H, N], at least 0, in float32 or wider; None without a gate."""
        if not self.gated:
            return None
        h = wide(x @ self.Wg) + self.bg
        beta = 1 + F.elu(wide(x @ self.Wbeta))
        return (F.softplus(-beta * h) / (beta + GATE_EPS)).transpose(1, 2)

    def split(self, x):
        """[B, N, H D] -> [B, H, N, D]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def concatenate(self, o):
        return o.transpose(1, 2).flatten(2) @ self.Wo


class NativeSparseAttention(GatedFWA):
    """Native sparse attention (arXiv 2502.11089) with GatedFWA as its window.

    o = g_cmp o_cmp + g_slc o_slc + g_win o_win with g = sigmoid(x Wbranch). All branches share keys and
    values; the mean compresses blocks of l = 32 bytes every d = 16, and a query chooses 8 blocks of
    l' = 64 bytes. Written with whole score matrices: for the lengths of training.
    """

    LENGTH, STRIDE, SELECTION, TOP = 32, 16, 64, 8

    def __init__(self, config):
        super().__init__(config)
        self.Wbranch = nn.Parameter(0.02 * torch.randn(config.width, 3 * config.heads))

    def forward(self, x, rotation):
        q = rms_normalise(rotate(self.split(x @ self.Wq), rotation))
        k, v = self.split(x @ self.Wk), self.split(x @ self.Wv)
        compressed, weights = self.compressed(q, k, v, rotation)
        turned = rms_normalise(rotate(k, rotation)).to(q.dtype)
        selected = F.scaled_dot_product_attention(q, turned, v.to(q.dtype), attn_mask=self.choice(weights))
        window = self.attend(x, q, k, v, rotation)
        gates = torch.sigmoid(x @ self.Wbranch).unflatten(-1, (3, self.heads, 1)).permute(2, 0, 3, 1, 4)
        return self.concatenate(gates[0] * compressed + gates[1] * selected + gates[2] * window)

    def compressed(self, q, k, v, rotation):
        """Attention to the blocks that are complete: o [B, H, N, D] and weights [B, H, N, C]."""
        n = q.shape[2]
        if n < self.LENGTH:
            return torch.zeros_like(q), q.new_zeros(*q.shape[:3], 0)
        k = k.unfold(2, self.LENGTH, self.STRIDE).mean(-1)
        v = v.unfold(2, self.LENGTH, self.STRIDE).mean(-1)
        starts = torch.arange(k.shape[2], device=q.device) * self.STRIDE
        k = rms_normalise(rotate(k, rotation[:, starts])).to(q.dtype)
        visible = starts + self.LENGTH - 1 <= torch.arange(n, device=q.device)[:, None]
        scores = wide(q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
        # A row without a block sums to 0, not to 1.
        weights = F.softmax(scores.masked_fill(~visible, -1e30), -1) * visible
        return weights.to(v.dtype) @ v, weights

    @torch.no_grad()
    def choice(self, weights):
        """Which bytes each query may see, [B, H, N, N], from the weights of compressed blocks."""
        n, blocks = weights.shape[-2:]
        device = weights.device
        count = -(-n // self.SELECTION)
        starts = torch.arange(count, device=device) * self.SELECTION
        position = torch.arange(n, device=device)[:, None]
        # Each compressed block counts once for every stride-length piece that it shares with s.
        first = torch.arange(blocks, device=device)[:, None] * self.STRIDE
        pieces = torch.arange(self.LENGTH // self.STRIDE, device=device) * self.STRIDE
        inside = ((first + pieces) // self.SELECTION)[:, None] == torch.arange(count, device=device)[:, None]
        importance = weights.float() @ inside.sum(-1).float()
        # Block 0, the block of the query and the one before it are always taken.
        own = position // self.SELECTION
        index = torch.arange(count, device=device)
        taken = (index == 0) | (index == own) | (index == own - 1)
        importance = importance.masked_fill(taken, 1e9).masked_fill(starts > position, -1.0)
        chosen = torch.zeros_like(importance, dtype=torch.bool)
        chosen.scatter_(-1, importance.topk(min(self.TOP, count), dim=-1).indices, True)
        of_byte = torch.arange(n, device=device) // self.SELECTION
        return chosen[..., of_byte] & (position.T <= position)


def windowed_attention(q, k, v, alpha, w):
    """o [B, H, N, D] = softmax(q k / sqrt(D) - sum of alpha between) v over the last w bytes.

    Queries in blocks of w see two blocks of keys, their own and the one before: time and memory are
    linear in N. alpha [B, H, N] or None.
    """
    n = q.shape[2]
    fill = -n % w
    q, k, v = (F.pad(x, (0, 0, 0, fill)).unflatten(2, (-1, w)) for x in (q, k, v))
    scores = wide(q @ with_previous(k).transpose(-1, -2)) * q.shape[-1] ** -0.5
    if alpha is not None:
        # Sums from the start of the queries' block: they stay small, and so right, at any length.
        sums = running_sums(F.pad(alpha, (0, fill)).unflatten(2, (-1, w)))[..., None]  # [B, H, N/w, w, 1]
        before = F.pad(sums - sums[..., -1:, :], (0, 0, 0, 0, 1, -1))
        scores = scores + torch.cat([before, sums], dim=3).transpose(-1, -2) - sums
    query = torch.arange(w, device=q.device)[:, None]
    key = torch.arange(-w, w, device=q.device)  # from the block's start
    visible = (key <= query) & (key > query - w)
    first = torch.arange(q.shape[2], device=q.device)[:, None, None] == 0
    scores = scores.masked_fill(~(visible & ~(first & (key < 0))), float("-inf"))
    o = F.softmax(scores, -1).to(v.dtype) @ with_previous(v)
    return o.flatten(2, 3)[:, :, :n]


def with_previous(x):
    """[B, H, N/w, w, D] -> [B, H, N/w, 2w, D]: each block behind the one before it, zeros at first."""
    return torch.cat([F.pad(x, (0, 0, 0, 0, 1, -1)), x], dim=3)


def running_sums(x):
    """cumsum over the last dimension in float32, as a product: the compiler of torch 2.11 fails on the former."""
    with torch.autocast(x.device.type, enabled=False):
        return x @ torch.ones(x.shape[-1], x.shape[-1], device=x.device, dtype=x.dtype).triu()


def shift(x, a):
    """a_t x_{t-1} + (1 - a_t) x_t for x [B, H, N, D], a [B, N, H], x_{-1} = 0."""
    a = a.transpose(1, 2)[..., None]
    return a * F.pad(x, (0, 0, 1, -1)) + (1 - a) * x


def rope_tables(n, size, device):
    """cos and sin [2, N, D/2] of position * base^(-2i/D)."""
    frequency = ROPE_BASE ** (-2 * torch.arange(size // 2, device=device, dtype=torch.float64) / size)
    angle = torch.arange(n, device=device, dtype=torch.float64)[:, None] * frequency
    return torch.stack([angle.cos(), angle.sin()]).float()


def rotate(x, rotation):
    """Turns the pairs (i, i + D/2) of x [B, H, N, D] by the tables of its positions."""
    cos, sin = rotation
    a, b = wide(x).chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


def wide(x):
    """x in float32, or in float64 if it is so."""
    return x if x.dtype == torch.float64 else x.float()


def rms_normalise(x):
    y = wide(x)
    return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + NORM_EPS)).to(x.dtype)


def matrix(rows, columns, scale=1.0):
    return nn.Parameter(torch.randn(rows, columns) * scale * rows**-0.5)

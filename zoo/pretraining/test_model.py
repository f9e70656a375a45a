"""python -m unittest test_model: the fast forms in model.py against the formulas, written densely."""

import unittest

import torch
import torch.nn.functional as F

import data
from model import SIZES, VARIANTS, Config, GatedFwaLM, NativeSparseAttention, windowed_attention


def dense(q, k, v, alpha, w):
    n = q.shape[2]
    sums = alpha.cumsum(-1)
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 - (sums[..., :, None] - sums[..., None, :])
    ages = torch.arange(n)[:, None] - torch.arange(n)
    return F.softmax(scores.masked_fill((ages < 0) | (ages >= w), float("-inf")), -1) @ v


class ModelTest(unittest.TestCase):
    def setUp(self):
        torch.manual_seed(1)

    def test_windows_in_blocks_are_the_formula(self):
        for n, w in ((1, 4), (7, 4), (8, 4), (37, 16), (5, 16)):
            q, k, v = torch.randn(3, 2, 3, n, 8, dtype=torch.float64)
            alpha = torch.rand(2, 3, n, dtype=torch.float64)
            # Scores are float32 inside.
            torch.testing.assert_close(windowed_attention(q, k, v, alpha, w), dense(q, k, v, alpha, w), atol=1e-5, rtol=1e-5)

    def test_choice_is_the_formula(self):
        n, top = 700, NativeSparseAttention.TOP
        layer = NativeSparseAttention(Config(width=16, blocks=1, heads=2, hidden=16, nsa_every=1))
        blocks = (n - 32) // 16 + 1
        weights = torch.rand(1, 2, n, blocks)
        chosen = layer.choice(weights)
        for h, p in ((0, 0), (1, 100), (0, 511), (1, 699)):
            importance = [
                sum(
                    weights[0, h, p, 4 * s + m - i].item()
                    for m in range(4)
                    for i in range(2)
                    if 0 <= 4 * s + m - i < blocks
                )
                for s in range(p // 64 + 1)
            ]
            own = p // 64
            forced = {s for s in (0, own, own - 1) if s >= 0}
            rest = sorted(set(range(own + 1)) - forced, key=lambda s: -importance[s])
            expected = forced | set(rest[: top - len(forced)])
            bytes_seen = {j for s in expected for j in range(64 * s, 64 * s + 64) if j <= p}
            self.assertEqual(bytes_seen, set(chosen[0, h, p].nonzero().flatten().tolist()))

    def test_no_variant_looks_ahead(self):
        for variant in VARIANTS.values():
            model = GatedFwaLM(Config(width=32, blocks=2, heads=2, hidden=32, **{"window": 16} | variant))
            tokens = torch.randint(1, 256, (1, 300))
            other = tokens.clone()
            other[:, 200:] = torch.randint(1, 256, (1, 100))
            with torch.no_grad():
                torch.testing.assert_close(model(tokens)[:, :200], model(other)[:, :200])

    def test_variants_have_the_same_size(self):
        counts = {
            name: sum(p.numel() for p in GatedFwaLM(Config(**SIZES["tiny"], **variant)).parameters())
            for name, variant in VARIANTS.items()
        }
        self.assertLess(max(counts.values()) / min(counts.values()), 1.01, counts)

    def test_windows_cover_every_byte_once(self):
        stream = torch.frombuffer(bytearray(b"\0abcde\0f\0ghij"), dtype=torch.uint8).numpy()
        labels = [bytes(stream[o + 1 : o + 1 + n]) for o, n in data.windows(stream, 2)]
        self.assertEqual(labels, [b"ab", b"cd", b"e", b"f", b"gh", b"ij"])


if __name__ == "__main__":
    unittest.main()

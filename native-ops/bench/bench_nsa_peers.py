"""Times cuDNN's full causal attention of the installed PyTorch beside the three NSA branches.

    bench_nsa_peers.py OURS.csv OUT_DIR

Reads the CSV of `bench_nsa lengths`, measures scaled_dot_product_attention (bf16, 64 query and 4 key/value heads, D = 128,
forward) at the same lengths with cuDNN, prints one table and writes nsa_lengths.csv.
"""

import csv
import os
import statistics
import sys

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

H, KV_HEADS, D = 64, 4, 128


def milliseconds(body):
    body()
    torch.cuda.synchronize()

    def once():
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        body()
        stop.record()
        torch.cuda.synchronize()
        return start.elapsed_time(stop)

    guess = max(once(), 0.01)
    return statistics.median(once() for _ in range(max(1, min(20, int(300 / guess)))))


def full_attention(n):
    q = torch.randn(1, H, n, D, device="cuda", dtype=torch.bfloat16)
    k, v = (torch.randn(1, KV_HEADS, n, D, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    with torch.no_grad(), sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        def body():
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        ms = milliseconds(body)
    return ms, 4 * H * D * n * (n + 1) / 2 / ms * 1e-9


def main(ours, out):
    branches = {}
    with open(ours) as file:
        for row in csv.DictReader(file):
            branches.setdefault(int(row["N"]), {})[row["kernel"]] = float(row["ms"])
    rows = []
    for n, times in sorted(branches.items()):
        try:
            ms, rate = full_attention(n)
        except Exception as e:  # a length that it refuses is part of the result
            print(f"cuDNN, N {n}: {type(e).__name__}: {str(e).splitlines()[0][:200]}", flush=True)
            continue
        rows.append({"N": n, "cuDNN full ms": f"{ms:.3f}", "cuDNN TFLOP/s": f"{rate:.0f}",
                     **{name + " ms": f"{time:.3f}" for name, time in times.items()},
                     "full / three branches": f"{ms / times['three branches forward']:.2f}"})
        print(rows[-1], flush=True)
    if not rows:
        return
    with open(os.path.join(out, "nsa_lengths.csv"), "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])

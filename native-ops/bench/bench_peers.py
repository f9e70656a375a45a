"""Times the attention of the installed PyTorch beside the CUDA kernels and draws both.

    bench_peers.py OURS.csv OUT_DIR [--lengths]

Reads the CSV of bench_kernels, appends FlexAttention (sliding window; sliding window with a decay), cuDNN and
FlashAttention-2 full causal attention in the same format, prints one table and writes results.csv and results.png.
TFLOP/s count the useful operations only: 4 B H D pairs forward, 3.5 times that forward+backward.
"""

import csv
import statistics
import sys
import warnings

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

FIELDS = ["kernel", "type", "B", "H", "N", "D", "w", "gate", "pass", "ms", "TFLOP/s"]


def compiled_flex():
    """Afresh for each case: past a few recompilations PyTorch would fall back to its slow dense path."""
    torch._dynamo.reset()
    return torch.compile(flex_attention, dynamic=False)


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
    return statistics.median(once() for _ in range(max(7, min(50, int(200 / guess)))))


def pairs(n, w):
    w = min(w, n)
    return w * (w + 1) / 2 + (n - w) * w


def measure(rows, name, dtype, b, h, n, d, w, gate, forward, backward=True):
    q, k, v = (torch.randn(b, h, n, d, device="cuda", dtype=dtype, requires_grad=backward) for _ in range(3))
    grad = torch.randn_like(q)
    useful = 4 * b * h * d * pairs(n, w or n)
    kind = {torch.bfloat16: "bf16", torch.float32: "fp32 tf32"}[dtype]

    def row(name_of_pass, ms, factor):
        rows.append(dict(zip(FIELDS, [name, kind, b, h, n, d, w or n, gate, name_of_pass, f"{ms:.4f}",
                                      f"{factor * useful / ms * 1e-9:.1f}"])))
        print(rows[-1], flush=True)

    try:
        with torch.no_grad():
            row("forward", milliseconds(lambda: forward(q, k, v)), 1)
        if backward:
            def both():
                q.grad = k.grad = v.grad = None
                forward(q, k, v).backward(grad)

            row("forward+backward", milliseconds(both), 3.5)
    except Exception as e:  # a peer that refuses a case is part of the result
        print(f"{name} {kind} B{b} H{h} N{n} D{d} w{w}: {type(e).__name__}: {str(e).splitlines()[0][:200]}", flush=True)


def window_mask(n, w):
    return create_block_mask(lambda b, h, q, k: (q >= k) & (q - k < w), None, None, n, n, device="cuda", _compile=True)


def flex_window(rows, dtype, b, h, n, d, w, backward=True):
    flex, mask = compiled_flex(), window_mask(n, w)
    measure(rows, "FlexAttention window", dtype, b, h, n, d, w, 0,
            lambda q, k, v: flex(q, k, v, block_mask=mask), backward)


def flex_decay(rows, dtype, b, h, n, d, w):
    flex, mask = compiled_flex(), window_mask(n, w)
    sums = torch.cumsum(torch.rand(b, h, n, device="cuda") * 0.125, -1)

    def decay(score, b, h, q, k):
        return score - (sums[b, h, q] - sums[b, h, k])

    # its backward refuses a score_mod that reads a captured tensor by the query index
    measure(rows, "FlexAttention window+decay", dtype, b, h, n, d, w, 1,
            lambda q, k, v: flex(q, k, v, score_mod=decay, block_mask=mask), False)


def full(rows, backend, name, b, h, n, d):
    def forward(q, k, v):
        with sdpa_kernel(backend):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    measure(rows, name, torch.bfloat16, b, h, n, d, None, 0, forward)


def ceilings():
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    ms = milliseconds(lambda: a @ b)
    x = torch.empty(1 << 30, device="cuda", dtype=torch.float32)
    y = torch.empty_like(x)
    copy = milliseconds(lambda: y.copy_(x))
    print(f"matmul bf16 {2 * 8192**3 / ms * 1e-9:.0f} TFLOP/s, copy {2 * x.numel() * 4 / copy * 1e-9:.2f} TB/s", flush=True)


def table(rows):
    print(f"\n{'kernel':28s} {'type':11s} {'B,H,N,D,w':24s} gate {'pass':17s} {'ms':>9s} {'TFLOP/s':>8s}")
    for r in rows:
        shape = ",".join(str(r[f]) for f in ("B", "H", "N", "D", "w"))
        print(f"{r['kernel']:28s} {r['type']:11s} {shape:24s} {r['gate']:>4} {r['pass']:17s} {r['ms']:>9s} {r['TFLOP/s']:>8s}")


def picture(rows, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(15, 5.5))
    lines = {}
    for r in rows:
        if r["pass"] == "forward+backward" and r["type"] == "bf16" and int(r["D"]) == 64 and int(r["H"]) == 16 \
                and int(r["B"]) == 1 and (int(r["w"]) in (512, int(r["N"]))) and "G=" not in r["kernel"]:
            label = r["kernel"] + (" + gate" if str(r["gate"]) == "1" and "decay" not in r["kernel"] else "")
            lines.setdefault(label, {})[int(r["N"])] = float(r["ms"])
    for label, points in sorted(lines.items()):
        left.plot(sorted(points), [points[n] for n in sorted(points)], "o-", label=label)
    left.set(xscale="log", yscale="log", xlabel="N", ylabel="ms, forward+backward", title="bf16, H 16, D 64, w 512")
    left.grid(True, which="both", alpha=0.3)
    left.legend(fontsize=8)
    shapes = [("1", "65536", "64", "512"), ("1", "65536", "128", "512"), ("1", "65536", "128", "1024"), ("4", "4096", "64", "512")]
    names, bars = [], {}
    for shape in shapes:
        for step in ("forward", "forward+backward"):
            names.append(f"D {shape[2]}, w {shape[3]}\nN {shape[1]}\n{step.replace('forward', 'fwd').replace('backward', 'bwd')}")
            for r in rows:
                if r["type"] == "bf16" and r["pass"] == step and (str(r["B"]), str(r["N"]), str(r["D"]), str(r["w"])) == shape \
                        and "G=" not in r["kernel"]:
                    label = r["kernel"] + (" + gate" if str(r["gate"]) == "1" and "decay" not in r["kernel"] else "")
                    bars.setdefault(label, {})[len(names) - 1] = float(r["TFLOP/s"])
    width = 0.8 / max(1, len(bars))
    for i, (label, values) in enumerate(sorted(bars.items())):
        right.bar([x + i * width for x in values], list(values.values()), width, label=label)
    right.set_xticks([x + 0.3 for x in range(len(names))], names, fontsize=7)
    right.set(ylabel="useful TFLOP/s", title="one GPU: " + torch.cuda.get_device_name())
    right.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def write(rows, out):
    with open(f"{out}/results.csv", "w", newline="") as f:
        writer = csv.DictWriter(f, FIELDS)
        writer.writeheader()
        writer.writerows(rows)
    picture(rows, f"{out}/results.png")


def main():
    ours, out = sys.argv[1], sys.argv[2]
    rows = []
    for path in ours.split(","):
        with open(path, newline="") as f:
            rows += list(csv.DictReader(f))
    peers = []
    warnings.simplefilter("ignore", DeprecationWarning)
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}")
    ceilings()
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.set_float32_matmul_precision("high")
    for b, h, n, d, w in ((1, 16, 65536, 64, 512), (1, 16, 65536, 64, 1024), (1, 16, 65536, 128, 512),
                          (1, 16, 65536, 128, 1024), (4, 16, 4096, 64, 512)):
        flex_window(peers, torch.bfloat16, b, h, n, d, w)
        flex_decay(peers, torch.bfloat16, b, h, n, d, w)
    flex_decay(peers, torch.float32, 1, 16, 16384, 64, 512)
    flex_window(peers, torch.float32, 1, 16, 16384, 64, 512)
    full(peers, SDPBackend.CUDNN_ATTENTION, "cuDNN full", 1, 16, 65536, 64)
    full(peers, SDPBackend.FLASH_ATTENTION, "FlashAttention-2 full", 1, 16, 65536, 64)
    write(rows + peers, out)
    if "--lengths" in sys.argv:
        for n in (4096, 16384):  # beyond, building FlexAttention's block mask takes minutes
            full(peers, SDPBackend.CUDNN_ATTENTION, "cuDNN full", 1, 16, n, 64)
            full(peers, SDPBackend.FLASH_ATTENTION, "FlashAttention-2 full", 1, 16, n, 64)
            flex_window(peers, torch.bfloat16, 1, 16, n, 64, 512)
        write(rows + peers, out)
    table(rows + peers)


if __name__ == "__main__":
    main()

"""Trains one language model and measures it on the held-out files.

    python train.py --name tiny-gatedfwa-1 --size tiny --variant gatedfwa --seed 1 --steps 3000

writes runs/NAME.safetensors (half precision) and runs/NAME.json (settings, losses, bits per byte).
Windows of text and first weights depend on the seed alone, so variants of one seed see the same text.
"""

import argparse
import json
import math
import os
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import data
from model import SIZES, VARIANTS, Config, GatedFwaLM

LN2 = math.log(2)
CONTEXT = 1024
EVALUATED = (1024, 4096)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True)
    parser.add_argument("--size", choices=SIZES, required=True)
    parser.add_argument("--variant", choices=VARIANTS, default="gatedfwa")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=math.inf, help="the schedule ends by then at the latest")
    parser.add_argument("--batch", type=int, default=64, help="windows in a step")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--warmup", type=int, default=100, help="steps")
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--save-every", type=float, default=60, help="seconds")
    parser.add_argument("--data", type=Path, default=data.DATA)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--no-compile", action="store_true")
    return parser.parse_args()


def main():
    args = arguments()
    args.runs.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(args.seed)
    config = Config(**SIZES[args.size], **VARIANTS[args.variant])
    model = GatedFwaLM(config).to(device)
    if not args.no_compile:
        for block in model.blocks:
            block.compile()
    report = {
        "name": args.name,
        "variant": args.variant,
        "seed": args.seed,
        "config": asdict(config),
        "parameters": sum(p.numel() for p in model.parameters()),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
    }
    say(args, **report)
    report |= train(model, args, device)
    save(model, config, args)
    held_out = load(args.data, "held-out")
    # What is measured is what is shipped: half precision weights.
    for p in model.parameters():
        p.data = p.data.half().float()
    report["held_out_bytes"] = int((held_out != 0).sum())
    for length in EVALUATED:
        report[f"bits_per_byte_{length}"] = bits_per_byte(model, held_out, length, device)
        say(args, length=length, bits_per_byte=report[f"bits_per_byte_{length}"])
        write_json(args.runs / f"{args.name}.json", report)


def train(model, args, device):
    stream = torch.from_numpy(load(args.data, "train")).to(device)
    random = torch.Generator().manual_seed(args.seed)
    decayed = [p for name, p in model.named_parameters() if p.ndim == 2 and "embedding" not in name]
    others = [p for name, p in model.named_parameters() if not (p.ndim == 2 and "embedding" not in name)]
    optimizer = torch.optim.AdamW(
        [dict(params=decayed, weight_decay=args.weight_decay), dict(params=others, weight_decay=0.0)],
        betas=(0.9, 0.95),
        fused=device == "cuda",
    )
    offsets = torch.arange(CONTEXT + 1, device=device)
    losses = []
    recent = []
    started = saved = first = None
    step = 0
    while step < args.steps:
        now = time.monotonic()
        started = started or now
        progress = max(step / args.steps, (now - started) / args.seconds)
        if progress >= 1:
            break
        rate = args.learning_rate * min((step + 1) / args.warmup, 0.5 + 0.5 * math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = rate
        places = torch.randint(len(stream) - CONTEXT, (args.batch, 1), generator=random).to(device)
        text = stream[places + offsets].long()
        loss = loss_of(model, text[:, :-1], text[:, 1:], device).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        recent.append(loss.detach())
        step += 1
        if step == 20:  # compiled by now
            synchronize(device)
            first = time.monotonic()
        if step % 50 == 0 or step == args.steps:
            mean = torch.stack(recent).mean().item() / LN2
            recent.clear()
            if not math.isfinite(mean):
                raise SystemExit(f"{args.name}: the loss became {mean} by step {step}")
            losses.append([step, round(mean, 4)])
            if step % 500 == 0:
                say(args, step=step, bits_per_byte=mean, seconds=time.monotonic() - started)
            if time.monotonic() - (saved or started) > args.save_every:
                saved = time.monotonic()
                save(model, model.config, args)
    synchronize(device)
    ended = time.monotonic()
    return {
        "steps": step,
        "bytes": step * args.batch * CONTEXT,
        "seconds": ended - started,
        "bytes_per_second": (step - 20) * args.batch * CONTEXT / (ended - first) if first and step > 20 else None,
        "losses": losses,
    }


def loss_of(model, inputs, labels, device):
    """Loss in nats of each byte [B, N]."""
    with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
        logits = model(inputs)
    return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)


@torch.no_grad()
def bits_per_byte(model, stream, length, device):
    """Mean over every byte of every held-out file; each window starts without a past."""
    batch = max(1, 2**15 // length)
    plan = sorted(data.windows(stream, length), key=lambda window: -window[1])
    padded = torch.from_numpy(np.append(stream, np.zeros(length + 1, np.uint8))).to(device)
    offsets = torch.arange(length + 1, device=device)
    bits = torch.zeros((), dtype=torch.float64, device=device)
    for at in range(0, len(plan), batch):
        chosen = plan[at : at + batch]
        sizes = torch.tensor([size for _, size in chosen], device=device)[:, None]
        longest = chosen[0][1]
        text = padded[torch.tensor([[offset] for offset, _ in chosen], device=device) + offsets[: longest + 1]].long()
        with torch.compiler.set_stance("force_eager"):
            loss = loss_of(model, text[:, :-1], text[:, 1:], device)
        bits += (loss.double() / LN2 * (offsets[:longest] < sizes)).sum()
    return bits.item() / sum(size for _, size in plan)


def save(model, config, args):
    """Half precision, written beside and renamed."""
    path = args.runs / f"{args.name}.safetensors"
    tensors = {name: p.detach().half().cpu().contiguous() for name, p in model.state_dict().items()}
    metadata = {"format": "gatedfwa-lm/1"} | {key: str(int(value)) for key, value in asdict(config).items()}
    save_file(tensors, f"{path}.part", metadata)
    os.replace(f"{path}.part", path)


def load(folder, name):
    path = folder / name
    return data.load(path if path.exists() else folder / f"{name}.xz")


def write_json(path, content):
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=1))
    os.replace(part, path)


def synchronize(device):
    if device == "cuda":
        torch.cuda.synchronize()


def say(args, **what):
    print(args.name, json.dumps(what), flush=True)


if __name__ == "__main__":
    main()

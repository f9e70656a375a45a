"""Writes what a model answers to fixed prompts, for the test that Deeplearning4j answers the same.

    python reference.py MODEL.safetensors PROMPTS OUT

PROMPTS is a folder of .txt files. For each, OUT/NAME.npy becomes the logits [1 + bytes, 256] after the
byte 0 that begins a file and after each byte of the prompt: computed in float64, since PyTorch's float32
itself is off by up to 3e-3 at single bytes, and stored in float32.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from model import Config, GatedFwaLM


def load(path):
    """A model in float32 from a file that train.py wrote."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name).float() for name in file.keys()}
    settings = {key: int(value) for key, value in metadata.items() if key != "format"}
    model = GatedFwaLM(Config(**settings))
    model.load_state_dict(tensors)
    return model.eval()


@torch.no_grad()
def main(path, prompts, out):
    model = load(path).double()
    Path(out).mkdir(parents=True, exist_ok=True)
    for prompt in sorted(Path(prompts).glob("*.txt")):
        tokens = torch.tensor([[0, *prompt.read_bytes()]])
        np.save(Path(out) / prompt.stem, model(tokens)[0].float().numpy())


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])

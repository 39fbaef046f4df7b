"""Train torchvision's models for three steps as four other machines would, and compare the bits.

    python -m benchmarks.models [name …]

Each model trains on two random images from its own random initialisation. A row has the first
digits of the sha256 of the loss and all weights and statistics, in each environment.
"""

import contextlib
import hashlib
import os
import subprocess
import sys
import time

import torch
import torchvision
from torch.nn import functional as F

import exact
from benchmarks.environments import ENVIRONMENTS
from tracking.repository import ROOT

SIZES = {
    "squeezenet1_1": 32,
    "shufflenet_v2_x0_5": 32,
    "mobilenet_v3_small": 32,
    "resnet18": 32,
    "densenet121": 32,
    "efficientnet_b0": 32,
    "convnext_tiny": 32,
    "swin_t": 32,
    "vit_b_16": 32,
    "vgg11_bn": 32,
}  # of the images, in pixels
CHOSEN = ("1 thread", "2 threads", "no AVX in PyTorch", "SSE4.2 in MKL")
STEPS = 3


def train(name: str, arithmetic: str) -> str:
    """The digits of the model's state after three steps of AdamW."""
    options = {"image_size": SIZES[name]} if name.startswith("vit") else {}
    torch.manual_seed(1)
    block = exact.mode(seed=1) if arithmetic == "exact" else contextlib.nullcontext()
    with block:
        model = getattr(torchvision.models, name)(num_classes=10, **options)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
        images = torch.randn(2, 3, SIZES[name], SIZES[name])
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), torch.tensor([1, 2]))
            loss.backward()
            optimizer.step()
    sha256 = hashlib.sha256(repr(loss.item()).encode())
    for tensor in model.state_dict().values():
        sha256.update(tensor.contiguous().numpy().tobytes())
    return sha256.hexdigest()[:8]


def digits(name: str, arithmetic: str, settings: dict[str, str]) -> str:
    """The same from a process of its own, or the error it ends with."""
    command = [sys.executable, "-m", "benchmarks.models", "--train", name, arithmetic]
    environment = os.environ | settings
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    return done.stdout.strip() or done.stderr.strip().splitlines()[-1]


def main() -> None:
    """Print a row for each model."""
    if sys.argv[1:2] == ["--train"]:
        print(train(*sys.argv[2:4]))
        return
    print(f"| model | {' | '.join(CHOSEN)} | native | seconds |\n|{' --- |' * (len(CHOSEN) + 3)}")
    apart = []
    for name in sys.argv[1:] or SIZES:
        started = time.perf_counter()
        row = [digits(name, "exact", ENVIRONMENTS[key]) for key in CHOSEN]
        seconds = time.perf_counter() - started
        native = {digits(name, "native", ENVIRONMENTS[key]) for key in (CHOSEN[0], CHOSEN[2])}
        verdict = "same" if len(native) == 1 else "differs"
        print(f"| {name} | {' | '.join(row)} | {verdict} | {seconds:.0f} |", flush=True)
        apart += [name] if len(set(row)) > 1 or len(row[0]) != 8 else []
    if apart:
        sys.exit(f"error: other bits, or refused: {', '.join(apart)}")


if __name__ == "__main__":
    main()

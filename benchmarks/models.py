r"""Train models of other packages for three steps as four other machines would; compare the bits.

    python -m benchmarks.models [name …]
    uv run --no-project --with-requirements requirements.txt --with timm==1.0.31 \
      --with transformers==5.24.0 python -m benchmarks.models timm/resnet10t …

Without names, torchvision's models train. Each model trains from its own random initialisation:
on two random images, or on two random texts of 16 tokens. A row has the first digits of the sha256
of the loss and all weights and statistics, in each environment.
"""

import contextlib
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import exact
from benchmarks.environments import ENVIRONMENTS
from tracking.repository import ROOT

TORCHVISION = (
    "squeezenet1_1",
    "shufflenet_v2_x0_5",
    "mobilenet_v3_small",
    "resnet18",
    "densenet121",
    "efficientnet_b0",
    "convnext_tiny",
    "swin_t",
    "vit_b_16",
    "vgg11_bn",
)
TIMM = ("resnet10t", "ghostnet_050", "mobilevit_xxs", "edgenext_xx_small", "deit_tiny_patch16_224")
TRANSFORMERS = {
    "gpt2": "CausalLM",
    "llama": "CausalLM",
    "mamba": "CausalLM",
    "bert": "MaskedLM",
    "t5": "Seq2SeqLM",
}
# transformers': small ones, as the operations are the same.
TEXT = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 100,
    "decoder_start_token_id": 0,
}
CHOSEN = ("1 thread", "2 threads", "no AVX in PyTorch", "SSE4.2 in MKL")
STEPS = 3

Loss = Callable[[], Tensor]


def create(name: str) -> tuple[nn.Module, Loss]:
    """The model, and its loss on two random examples."""
    package, _, kind = name.rpartition("/")
    if package == "transformers":
        return text_model(kind)
    # Pixels: what the smallest of those with several stages need.
    size = 64 if kind in ("mobilevit_xxs", "edgenext_xx_small") else 32
    options = {"num_classes": 10}
    if kind.startswith(("vit", "deit")):
        options["image_size" if package == "" else "img_size"] = size
    model: nn.Module
    if package == "timm":
        import timm

        model = timm.create_model(kind, **options)
    else:
        import torchvision

        model = torchvision.models.get_model(kind, **options)
    images = torch.randn(2, 3, size, size)
    return model, lambda: F.cross_entropy(model(images), torch.tensor([1, 2]))


def text_model(kind: str) -> tuple[nn.Module, Loss]:
    """The same for a model of transformers, which computes its loss itself."""
    import transformers

    config = transformers.AutoConfig.for_model(kind, **TEXT)
    family: Any = getattr(transformers, f"AutoModelFor{TRANSFORMERS[kind]}")
    model: nn.Module = family.from_config(config)
    tokens = torch.randint(TEXT["vocab_size"], (2, 16))
    return model, lambda: model(input_ids=tokens, labels=tokens).loss


def train(name: str, arithmetic: str) -> str:
    """The digits of the model's state after three steps of AdamW."""
    torch.manual_seed(1)
    with exact.mode(seed=1) if arithmetic == "exact" else contextlib.nullcontext():
        model, loss_of = create(name)
        model.train()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss = loss_of()
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
    for name in sys.argv[1:] or TORCHVISION:
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

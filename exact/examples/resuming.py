"""Saving and resuming: ten steps at once, or five, a file and five more, end the same."""

import io

import torch
from torch import nn, optim

import exact


def train(steps: int, saved: bytes | None = None) -> tuple[nn.Module, bytes]:
    """The model after these steps more, and all that is needed to go on from there."""
    with exact.mode(seed=1):
        model = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.2), nn.Linear(16, 1))
        optimizer = optim.Adam(model.parameters())
        if saved:
            state = torch.load(io.BytesIO(saved))
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            torch.set_rng_state(state["generator"])
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.randn(32, 8)).square().mean().backward()
            optimizer.step()
        torch.save(
            {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "generator": torch.get_rng_state(),
            },
            file := io.BytesIO(),
        )
    return model, file.getvalue()


whole, _ = train(10)
resumed, _ = train(5, saved=train(5)[1])
pairs = zip(whole.parameters(), resumed.parameters(), strict=True)
print(all(torch.equal(a, b) for a, b in pairs))  # True
print(next(resumed.parameters())[0, :2].tolist())  # [-0.0802505686879158, -0.25689658522605896]

"""A DataLoader with workers: the seed shuffles, and the number of workers changes nothing."""

import torch
from torch import nn, optim
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import exact


def train(workers: int) -> nn.Linear:
    """A linear model after one epoch, with batches from as many processes."""
    features = torch.arange(600.0).view(200, 3).remainder(7)
    data = TensorDataset(features, features.sum(1, keepdim=True))
    with exact.mode(seed=1):
        model = nn.Linear(3, 1)
        optimizer = optim.SGD(model.parameters(), lr=0.01)
        for x, y in DataLoader(data, batch_size=16, shuffle=True, num_workers=workers):
            optimizer.zero_grad()
            F.mse_loss(model(x), y).backward()
            optimizer.step()
    return model


if __name__ == "__main__":
    alone, shared = train(workers=0), train(workers=2)
    print(torch.equal(alone.weight, shared.weight))  # True
    print(alone.weight.tolist())  # [[1.0497030019760132, 0.989353358745575, 0.8609462976455688]]

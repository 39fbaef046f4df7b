"""The kernel of a step of SGD."""

import ctypes
import inspect
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.optim import SGD, Optimizer

from exact.kernels.registry import is_plain
from exact.kernels.shared_library import fields, library

__all__ = ["update"]

_STEP = inspect.unwrap(SGD.step)  # of a subclass, too, and whatever decorates it


class _Weights(ctypes.Structure):
    _fields_ = fields("weights* momentum* grad* n")


def update(optimizer: Optimizer) -> bool:
    """Do the optimiser's step; False, with nothing done, where there is no kernel for it."""
    compiled = library()
    hooks = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    if inspect.unwrap(type(optimizer).step) is not _STEP or hooks or compiled is None:
        return False
    updates = [_sgd(group, optimizer.state) for group in optimizer.param_groups]
    if not all(updates):
        return False
    for parameters, weights, settings in filter(None, updates):
        compiled.sgd(weights, len(weights), settings, torch.get_num_threads())
        increment_version(parameters)
    return True


def _sgd(group: dict[str, Any], state: Any) -> tuple[list[Tensor], Any, Any] | None:
    """What the kernel takes: the weights with their gradients and momentum, and the settings."""
    if any(group[key] for key in ("nesterov", "maximize", "differentiable", "fused")):
        return None
    numbers = [-group["lr"], group["momentum"], 1 - group["dampening"], group["weight_decay"]]
    parameters, rows = [], []
    for p in group["params"]:
        grad = p.grad
        if grad is None:
            continue
        tensors = [p, grad]
        if group["momentum"]:
            if (buffer := state[p].get("momentum_buffer")) is None:
                return None
            tensors.append(buffer)
        if not is_plain(*tensors) or any(x.shape != p.shape for x in tensors):
            return None
        weights, gradient, *momentum = (x.data_ptr() for x in tensors)
        rows.append(_Weights(weights, momentum[0] if momentum else None, gradient, p.numel()))
        parameters.append(p)
    if not all(isinstance(number, float | int) for number in numbers):
        return None
    return parameters, (_Weights * len(rows))(*rows), (ctypes.c_float * 4)(*numbers)

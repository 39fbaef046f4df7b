"""The kernel of a step of SGD."""

import ctypes
import inspect
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.optim import SGD, Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from exact.kernels.registry import is_plain
from exact.kernels.shared_library import library

__all__ = ["update"]

_STEP = inspect.unwrap(SGD.step)  # of a subclass, too, and whatever decorates it


def update(optimizer: Optimizer) -> bool:
    """Do the optimiser's step; False, with nothing done, where there is no kernel for it."""
    compiled = library()
    hooks = [*optimizer._optimizer_step_pre_hooks, *optimizer._optimizer_step_post_hooks]
    hooks += [*_global_optimizer_pre_hooks, *_global_optimizer_post_hooks][2:]  # the mode has two
    if inspect.unwrap(type(optimizer).step) is not _STEP or hooks or compiled is None:
        return False
    updates = [_sgd(group, optimizer.state) for group in optimizer.param_groups]
    if not all(updates):
        return False
    for parameters, weights, settings in filter(None, updates):
        compiled.sgd(weights, len(parameters), settings, torch.get_num_threads())
        increment_version(parameters)
    return True


def _sgd(group: dict[str, Any], state: Any) -> tuple[list[Tensor], Any, Any] | None:
    """What the kernel takes: the weights with their gradients and momentum, and the settings."""
    if group["nesterov"] or group["maximize"] or group["differentiable"] or group["fused"]:
        return None
    numbers = [-group["lr"], group["momentum"], 1 - group["dampening"], group["weight_decay"]]
    parameters: list[Tensor] = []
    weights: list[int] = []  # of each: addresses of it, its momentum and gradient, and its size
    for p in group["params"]:
        grad = p.grad
        if grad is None:
            continue
        buffer = state[p].get("momentum_buffer") if group["momentum"] else grad
        if buffer is None or not (
            is_plain(p, grad, buffer) and p.shape == grad.shape == buffer.shape
        ):
            return None
        momentum = 0 if buffer is grad else buffer.data_ptr()
        weights += p.data_ptr(), momentum, grad.data_ptr(), p.numel()
        parameters.append(p)
    for number in numbers:
        if not isinstance(number, float | int):
            return None
    settings = (ctypes.c_float * 4)(*numbers)
    if bool(settings[3]) is not bool(group["weight_decay"]):  # as it is below float32's range
        return None
    return parameters, (ctypes.c_int64 * len(weights))(*weights), settings

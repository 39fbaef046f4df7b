"""How a model is trained: optimisers, learning-rate schedules, and means against overfitting.

A setting's default is PyTorch's. Another optimiser of PyTorch needs a class here and a place in
`AnyOptimizer`.
"""

import functools
import inspect
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from lab.common.settings import Count, Decay, Positive, Share, Strict, by_name

if TYPE_CHECKING:
    from torch.nn import Parameter
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

Betas = Annotated[tuple[Share, Share], Field(strict=False)]


class _Optimizer(Strict):
    def create(self, parameters: "Iterable[Parameter]", lr: float) -> "Optimizer":
        """PyTorch's optimiser of the same class name, for these parameters."""
        # foreach: one call for all layers, where each call costs.
        optimizer: Optimizer = _without_compiler(type(self).__name__)(
            parameters, lr=lr, foreach=True, **self.model_dump(exclude={"name"})
        )
        return optimizer


@functools.cache
def _without_compiler(name: str) -> Any:
    """PyTorch's optimiser of this name, which does not load PyTorch's compiler.

    The decorators of these methods load it, which takes as long as to load PyTorch itself.
    """
    import torch

    kind = getattr(torch.optim, name)
    decorated = ("add_param_group", "state_dict", "load_state_dict")
    methods = {method: inspect.unwrap(getattr(kind, method)) for method in decorated}
    methods["step"] = torch.no_grad()(inspect.unwrap(kind.step))
    return type(name, (kind,), methods)


class SGD(_Optimizer):
    """Stochastic gradient descent."""

    name: Literal["sgd"]
    momentum: Share = 0.0
    weight_decay: Decay = 0.0
    nesterov: bool = False

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> "SGD":
        if self.nesterov and not self.momentum:
            raise ValueError("momentum above 0, as nesterov is on")
        return self


class Adam(_Optimizer):
    """Kingma and Ba 2015."""

    name: Literal["adam"]
    betas: Betas = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: Decay = 0.0


class AdamW(_Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

    name: Literal["adamw"]
    betas: Betas = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: Decay = 0.01


class RMSprop(_Optimizer):
    """Tieleman and Hinton 2012."""

    name: Literal["rmsprop"]
    alpha: Share = 0.99
    eps: Positive = 1e-8
    weight_decay: Decay = 0.0
    momentum: Share = 0.0
    centered: bool = False


class Adagrad(_Optimizer):
    """Duchi, Hazan and Singer 2011."""

    name: Literal["adagrad"]
    lr_decay: Decay = 0.0
    weight_decay: Decay = 0.0
    initial_accumulator_value: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    eps: Positive = 1e-10


AnyOptimizer = Annotated[
    Annotated[SGD | Adam | AdamW | RMSprop | Adagrad, Field(discriminator="name")],
    BeforeValidator(by_name),
]


class Schedule(Strict):
    """Constant, or down to 0: in a line, or along half a cosine (Loshchilov and Hutter 2017)."""

    name: Literal["constant", "linear", "cosine"]


class Step(Strict):
    """Times `factor` after every `epochs` epochs."""

    name: Literal["step"]
    epochs: Count = 10
    factor: Annotated[float, Field(gt=0, le=1)] = 0.1


AnySchedule = Annotated[
    Annotated[Schedule | Step, Field(discriminator="name")],
    BeforeValidator(by_name),
]


class Training(Strict):
    """How a model is trained: mini-batches, in as many passes over the training examples.

    `label_smoothing` s: the targets are 1 - s for the class and s spread evenly over all classes
    (Szegedy et al. 2016). `weight_averaging` d: each step keeps the share d of a running mean of
    the weights, which is what is validated and saved (Polyak and Juditsky 1992). `shift`, `flip`:
    each training image is moved by up to so many pixels, and mirrored with probability ½.
    """

    epochs: Annotated[int, Field(ge=1, le=10_000)]
    batch_size: Count
    optimizer: AnyOptimizer
    lr_schedule: AnySchedule
    label_smoothing: Share = 0.0
    weight_averaging: Share = 0.0
    shift: Annotated[int, Field(ge=0, le=1000)] = 0
    flip: bool = False

    def schedule(self, optimizer: "Optimizer", steps_per_epoch: int) -> "LRScheduler":
        """PyTorch's schedule of the learning rate, to be advanced after every step."""
        from torch.optim import lr_scheduler

        steps = self.epochs * steps_per_epoch
        chosen = self.lr_schedule
        if isinstance(chosen, Step):
            return lr_scheduler.StepLR(optimizer, chosen.epochs * steps_per_epoch, chosen.factor)
        if chosen.name == "cosine":
            return lr_scheduler.CosineAnnealingLR(optimizer, steps)
        linear = chosen.name == "linear"
        return lr_scheduler.LambdaLR(
            optimizer, lambda step: (steps - step) / steps if linear else 1.0
        )

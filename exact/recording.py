"""What a step computes: the operations that the mode sees in one call of it, in order.

A tensor is a number here: an argument of the step, the result of an operation, or a tensor
from outside the step such as a weight. Two recordings are equal if they do the same operations
on the same tensors with the same constants.
"""

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim import Optimizer
from torch.utils.weak import WeakTensorKeyDictionary

from exact import registry
from exact.errors import NotExactError
from exact.nested import mapped, require_plain, same

__all__ = ["Call", "Gradients", "Recording", "Ref", "Update", "map_refs", "numbers"]

_DECIDED_BY_DATA = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
_MASKS = (torch.bool, torch.uint8)


class Ref(NamedTuple):
    """The tensor of this number."""

    number: int


class Call(NamedTuple):
    """An operation, with a Ref for each tensor among its arguments and results."""

    operation: Any
    args: Any
    kwargs: dict[str, Any]
    results: Any


Gradients = list[tuple[Tensor, Ref | None]]  # of weights; None where a weight has no gradient


class Update(NamedTuple):
    """A step of an optimiser, with the gradients that it finds at all of its weights.

    Its operations are not recorded, as they depend on the number of steps before.
    """

    optimizer: Optimizer
    gradients: Gradients


class Recording:
    """The operations of one call, the tensors from outside and what Python decided by."""

    def __init__(self, inputs: list[Tensor]) -> None:
        self.steps: list[Call | Update] = []
        self.outside: dict[int, Tensor] = {}
        self.modules: list[Module] = []
        self.gradients: Gradients = []  # those that the call leaves behind
        self.results: Any = None
        self.size = 0  # the number of tensors
        self.shared = False  # whether workers divide a batch, whose sums depend on all of them
        # Weakly, as autograd copies a gradient that somebody else holds.
        self._numbers = WeakTensorKeyDictionary()
        self._updates = 0  # that have begun and not ended: one may call another
        self._generators: dict[Any, Tensor] = {}  # the state after the last random operation
        self.inputs = [self._new(x).number for x in inputs]  # twice the same for the same tensor
        self._first = self.size

    def run(self, step: Callable[[], Any]) -> Any:
        """Call the step, whose operations are then reported to `add`; detach its results."""
        thread = threading.get_ident()

        def note(module: Module, _: Any) -> None:
            if threading.get_ident() == thread:  # as the hook is for all threads
                self.modules.append(module)

        with register_module_forward_pre_hook(note):
            results = step()
        require_plain(results)
        self.modules = list(dict.fromkeys(self.modules))
        weights, updated = self._weights()
        # A gradient that nothing in the step has seen is none of the step's.
        seen = [x for x in weights if x.grad is None or x.grad in self._numbers or id(x) in updated]
        self.gradients = self._gradients(seen)
        self.results = map_tensors(self._ref, results)
        return map_tensors(Tensor.detach, results)

    def _weights(self) -> tuple[list[Tensor], set[int]]:
        """Those whose gradients the step may change, and the ids of those that it updates.

        An operation reads them, or a view of them; a module or an optimiser has them.
        """
        outside = list(self.outside.values())
        updates = [step.gradients for step in self.steps if isinstance(step, Update)]
        updated = [x for gradients in updates for x, _ in gradients]
        found = outside + [x._base for x in outside if x._base is not None] + updated
        found += [x for module in self.modules for x in module.parameters()]
        return [x for x in found if x.requires_grad and x.is_leaf], {id(x) for x in updated}

    def _gradients(self, weights: list[Tensor]) -> Gradients:
        each = {id(x): x for x in weights}.values()
        return [(x, None if x.grad is None else self._ref(x.grad)) for x in each]

    def before(self, operation: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """Raise NotExactError for an operation by which data, or a generator, decide what is done.

        Called before each operation.
        """
        if self._updates:
            return
        if operation is registry.aten.index.Tensor:
            decided = any(x is not None and x.dtype in _MASKS for x in args[1])
        else:
            decided = bool(_DECIDED_BY_DATA & set(operation.tags))
        if decided:
            raise NotExactError(
                f"{operation} lets numbers decide what a compiled step does (.item(), if, a mask):"
                " return the tensor, and do this outside the step"
            )
        if registry.is_random(operation):
            generator = kwargs.get("generator") or torch.default_generator
            state = generator.get_state()
            if not torch.equal(self._generators.setdefault(generator, state), state):
                raise NotExactError(
                    "a compiled step seeds or restores a random generator, as"
                    " torch.utils.checkpoint does for dropout: do this outside the step"
                )

    def add(self, operation: Any, args: Any, kwargs: dict[str, Any], results: Any) -> None:
        """Record an operation that was done."""
        if self._updates or operation.namespace == "profiler":
            return
        if operation is registry.aten.detach.default:
            (number,) = self._ref(args[0])
            if number >= self._first and number not in self.outside:
                self._numbers[results] = number  # the same numbers in the same memory
                return
        if registry.is_random(operation):
            generator = kwargs.get("generator") or torch.default_generator
            self._generators[generator] = generator.get_state()
        args, kwargs = map_tensors(self._ref, (list(args), kwargs))
        self.steps.append(Call(operation, args, kwargs, map_tensors(self._new, results)))

    def begin_update(self, optimizer: Optimizer, closure: bool) -> None:
        """Pause until `end_update`: an optimiser begins its step."""
        if closure:
            raise NotExactError("a compiled step cannot give the optimiser a closure: step() alone")
        if not self._updates:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            self.steps.append(Update(optimizer, self._gradients(parameters)))
        self._updates += 1

    def end_update(self) -> None:
        """Go on after the optimiser's step."""
        self._updates -= 1

    def difference(self, other: "Recording") -> str | None:
        """What the other recording does in another way, None if nothing."""
        if self.shared:
            return "sums over several workers"
        for mine, theirs in zip(self.steps, other.steps, strict=False):
            if not same(mine, theirs):
                return str(mine.operation) if isinstance(mine, Call) else "the optimiser's step"
            if self._is_new(tuple(mine), other):
                return f"{getattr(mine, 'operation', mine)}, by a tensor that is new each time"
        if len(self.steps) != len(other.steps) or self.modules != other.modules:
            return "the number of operations"
        left, before = ((part.gradients, part.results) for part in (self, other))
        return None if same(left, before) and not self._is_new(left, other) else "the results"

    def _is_new(self, value: Any, other: "Recording") -> bool:
        """Whether it has a tensor from outside that is another one in the other recording."""
        outside = (self.outside.get, other.outside.get)
        return any(outside[0](number) is not outside[1](number) for number in numbers(value))

    def _ref(self, x: Tensor) -> Ref:
        if x not in self._numbers:
            self.outside[self.size] = x
            self._new(x)
        return Ref(self._numbers[x])

    def _new(self, x: Tensor) -> Ref:
        if x not in self._numbers:  # in-place operations return their argument
            self._numbers[x] = self.size
            self.size += 1
        return Ref(self._numbers[x])


def map_tensors(function: Callable[[Tensor], Any], value: Any) -> Any:
    """The value with each tensor replaced, in lists, tuples and dictionaries."""
    return mapped(lambda x: function(x) if isinstance(x, Tensor) else x, value, Ref)


def map_refs(function: Callable[[Ref], Any], value: Any) -> Any:
    """The value with each Ref replaced."""
    return mapped(lambda x: function(x) if isinstance(x, Ref) else x, value, Ref)


def numbers(value: Any) -> list[int]:
    """Those of the tensors in a value, in order."""
    found: list[int] = []
    map_refs(lambda ref: found.append(ref.number), value)
    return found

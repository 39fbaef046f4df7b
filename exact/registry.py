"""Which operations of PyTorch are exact, and the functions that compute them.

An operation is registered where it is written: by `@implements` with its exact
implementation, or by `exact_as_is` if PyTorch's own is exact. Three variants follow from a
registered operation, where the types of the arguments agree: `exp_` (in place), `exp.out`
(into a given tensor) and `_foreach_exp` (of a list of tensors). The rest is refused.
"""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

from exact import aliasing
from exact.errors import NotExactError
from exact.variants import Implementation, count_change, foreach, in_place, into

aten = torch.ops.aten
_Function = TypeVar("_Function", bound=Implementation)

_REGISTERED: dict[Any, Implementation] = {}
_RANDOM: set[Any] = set()  # the operations that take a generator
_DISPATCHED = frozenset(torch._C._dispatch_get_all_op_names())


def implements(*names: str, random: bool = False) -> Callable[[_Function], _Function]:
    """Register the decorated function for the operations, as "exp" or "add.Tensor".

    It has the signature of the operation below autograd. A random operation's function
    takes a generator, which is None only in a block with a seed.
    """

    def decorate(function: _Function) -> _Function:
        for name in names:
            register(named(name), function)
            if random:
                _RANDOM.add(named(name))
        return function

    return decorate


def exact_as_is(names: str) -> None:
    """Register PyTorch's own operations, each with all its overloads, and their in-place twins."""
    for operation in overloads(names):
        register(operation, operation)


def register(operation: Any, implementation: Implementation) -> None:
    """Let the implementation compute the operation under the mode."""
    if operation in _REGISTERED:
        raise ValueError(f"{operation} is registered twice")
    _REGISTERED[operation] = implementation
    for table in (SEEDED, UNSEEDED):  # which may hold that it is refused
        table.clear()


def is_random(operation: Any) -> bool:
    """Whether the operation takes a generator."""
    return operation in _RANDOM


def overloads(names: str) -> Iterator[Any]:
    """The overloads of operations and of their in-place twins; "round.default" is one of them."""
    for name, _, overload in (name.partition(".") for name in names.split()):
        for operation in [*_overloads(name), *_overloads(f"{name}_")]:
            if overload in ("", operation._overloadname):
                yield operation


def _overloads(name: str) -> list[Any]:
    """What PyTorch dispatches under this name: no operation of TorchScript, no lists to write."""
    packet = getattr(aten, name, None)
    found = [getattr(packet, overload) for overload in packet.overloads()] if packet else []
    return [
        operation
        for operation in found
        if operation.name() in _DISPATCHED and not any(_is_list(out) for out in _outs(operation))
    ]


def named(name: str) -> Any:
    """The operation of this name, as "exp" or "add.Tensor". Raises ValueError if there is none."""
    packet, _, overload = name.partition(".")
    known = {operation._overloadname: operation for operation in _overloads(packet)}
    if (overload or "default") not in known:
        raise ValueError(f"{name} is no operation; overloads of {packet}: {', '.join(known)}")
    return known[overload or "default"]


def writes(operation: Any) -> bool:
    """Whether it writes an argument. Some of batch norm do, though their schema does not say so."""
    name = operation._schema.name
    statistics = "batch_norm" in name and not name.endswith("backward")
    return bool(operation._schema.is_mutable or statistics)


def is_view(operation: Any) -> bool:
    """Whether its result has the memory of its argument. Some do, though their schema is silent."""
    return (
        bool(operation.is_view)
        or "_unsafe_view" in operation.name()
        or "unsafe_split" in operation.name()
    )


def find(operation: Any) -> Implementation | None:
    """The function that computes the operation exactly, registered or derived; else None."""
    schema = getattr(operation, "_schema", None)
    if operation in _REGISTERED or schema is None:
        return _REGISTERED.get(operation)
    if not schema.name.startswith("aten::"):
        return None if _has_tensors(schema) else operation
    name = schema.name.removeprefix("aten::")
    if outs := _outs(operation):
        function = None if any(map(_is_list, outs)) else _original(name, _types(operation))
        return into(function, [out.name for out in outs]) if function else None
    if name.startswith("_foreach_"):
        return _find_foreach(name.removeprefix("_foreach_"), _types(operation))
    function = _original(name.removesuffix("_"), _types(operation)) if name.endswith("_") else None
    return function and in_place(function)


def _find_foreach(name: str, types: list[str]) -> Implementation | None:
    """The derived operation on lists; in place by `exp_` if it is registered, else by `exp`."""
    types = [kind.removeprefix("List[").removesuffix("]") for kind in types]
    function = _original(name.removesuffix("_"), types, prefix=True)
    if not name.endswith("_"):
        return function and foreach(function)
    updating = _original(name, types, prefix=True) or (function and in_place(function))
    return updating and count_change(foreach(updating))


def _original(name: str, types: list[str], prefix: bool = False) -> Implementation | None:
    """The registered function of this name for arguments of these types, or None.

    With `prefix`, it may take more, which have defaults. Random operations have no variants.
    """
    for operation in _overloads(name):
        theirs, others = _types(operation), operation._schema.arguments[len(types) :]
        agree = theirs == types or (
            prefix
            and theirs[: len(types)] == types
            and all(argument.has_default_value() for argument in others)
        )
        if agree and operation in _REGISTERED and not (operation in _RANDOM or _outs(operation)):
            return _REGISTERED[operation]
    return None


def _has_tensors(schema: Any) -> bool:
    """Whether it takes or returns tensors; packages ask for their version by operations without."""
    return any("Tensor" in str(x.type) for x in (*schema.arguments, *schema.returns))


def _outs(operation: Any) -> list[Any]:
    return [argument for argument in operation._schema.arguments if argument.is_out]


def _is_list(argument: Any) -> bool:
    return bool(argument.type.kind() == "ListType")


def _types(operation: Any) -> list[str]:
    arguments = operation._schema.arguments
    return [str(argument.type) for argument in arguments if not argument.is_out]


def _require_generator(operation: Any, function: Implementation) -> Implementation:
    def drawing(*args: Any, generator: torch.Generator | None = None, **options: Any) -> Any:
        if generator is None:
            raise NotExactError(f"{operation} needs a seed: exact.mode(seed=…)")
        return function(*args, generator=generator, **options)

    return drawing


class _Table(dict[Any, Implementation | None]):
    """Implementations by operation, found at the first lookup; None for what is refused."""

    def __init__(self, seeded: bool) -> None:
        super().__init__()
        self._seeded = seeded

    def __missing__(self, operation: Any) -> Implementation | None:
        function = find(operation)
        if function and operation in _RANDOM and not self._seeded:
            function = _require_generator(operation, function)
        if function and aliasing.writes_numbers(operation):
            function = aliasing.separated(operation, function)
        self[operation] = function
        return function


SEEDED, UNSEEDED = _Table(seeded=True), _Table(seeded=False)

"""Values in lists, tuples and dictionaries, which may be within each other."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

__all__ = ["mapped", "require_plain", "same"]

_NUMBERS = (Tensor, bool, int, float, str, type(None))


def mapped(function: Callable[[Any], Any], value: Any, single: type) -> Any:
    """The same with the function's value for each; `single`: a kind of tuple that counts as one."""
    if isinstance(value, dict):
        return {key: mapped(function, item, single) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and not isinstance(value, single):
        items = [mapped(function, item, single) for item in value]
        if isinstance(value, list):
            return items
        # A named tuple takes its fields one by one, and one of PyTorch's takes them together.
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return function(value)


def require_plain(results: Any) -> None:
    """Raise TypeError if a compiled step returns what could not be returned again."""
    if type(results) in (list, dict) or isinstance(results, tuple):
        for item in results.values() if isinstance(results, dict) else results:
            require_plain(item)
    elif not isinstance(results, _NUMBERS):
        raise TypeError(
            "a compiled step returns tensors and numbers, in lists, tuples and dictionaries,"
            f" not {type(results).__name__}"
        )


def same(a: Any, b: Any) -> bool:
    """Whether two values are equal, with their types, as 1 and True and 1.0 are not."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and same(list(a.values()), list(b.values()))
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, (Tensor, Optimizer)):
        return a is b
    return bool(a == b) or (a != a and b != b)

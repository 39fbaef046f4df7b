"""The list of operations in operations.md, from the tables by which the mode works.

python -m exact.docs.operations > exact/docs/operations.md
"""

import textwrap
from collections import defaultdict
from typing import Any

import torch

from exact.registry import aten, find

HEAD = """\
# Operations

Made by `python -m exact.docs.operations` with PyTorch {release}; other releases have other
operations. Names are those below autograd, as in errors: `add.Tensor` is the overload of
`aten::add` for two tensors. In-place variants (`exp_`), variants for lists of tensors
(`_foreach_exp`) and variants with `out=` are listed with the operation.

Not listed: the {composite} operations that PyTorch defines as a sequence of others, such as
`linear`, `reshape` or `conv2d`. Those others decide.
"""


def statuses() -> tuple[dict[str, set[str]], dict[str, set[str]], int]:
    """Exact overloads and refused ones, by operation, and the number of composite operations."""
    exact: dict[str, set[str]] = defaultdict(set)
    refused: dict[str, set[str]] = defaultdict(set)
    composite = set()
    for full_name in torch._C._dispatch_get_all_op_names():
        namespace, _, rest = full_name.partition("::")
        name, _, overload = rest.partition(".")
        operation: Any = getattr(getattr(aten, name, None), overload or "default", None)
        if namespace != "aten" or operation is None:
            continue
        plain = name if name.endswith("__") else name.removeprefix("_foreach_").removesuffix("_")
        out = any(argument.is_out for argument in operation._schema.arguments)
        if find(operation):
            exact[plain].add(rest)
        elif operation.has_kernel_for_dispatch_key(torch.DispatchKey.CompositeImplicitAutograd):
            composite.add(plain)
        elif not out:
            refused[plain].add(rest)
    return exact, refused, len(composite)


def paragraph(names: list[str]) -> str:
    """The names in alphabetical order, as lines of code of a hundred characters."""
    return (
        "```text\n" + textwrap.fill(" ".join(sorted(names)), 100, break_on_hyphens=False) + "\n```"
    )


def shown(plain: str, names: set[str]) -> str:
    """The operation's name, or that of its only variant that is exact."""
    packets = sorted(name.partition(".")[0] for name in names)
    return plain if plain in packets else packets[-1]


def main() -> None:
    """Print the page."""
    exact, refused, composite = statuses()
    partly = [name for plain in exact for name in refused.get(plain, ())]
    wholly = [plain for plain in refused if plain not in exact]
    print(HEAD.format(release=torch.__version__.partition("+")[0], composite=composite))
    overloads = sum(map(len, exact.values()))
    print(f"## Exact: {len(exact)} operations, {overloads} with variants and overloads\n")
    print(paragraph([shown(plain, names) for plain, names in exact.items()]))
    print(f"\n## Refused variants and overloads of these: {len(partly)}\n")
    print(paragraph(partly))
    print(f"\n## Refused with all variants: {len(wholly)}\n")
    print(paragraph(wholly))


if __name__ == "__main__":
    main()

"""How many of PyTorch's own test samples run under the mode with the right value.

    python -m benchmarks.coverage [name …]

`op_db` lists PyTorch's functions and `module_db` its layers and losses, with the samples of their
own tests. An entry is whole if each of its samples runs, forward and backward, and agrees with
the float64 or float32 result of PyTorch; else it is refused, by name, or wrong.
"""

import contextlib
import copy
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

import exact

_Outcome = tuple[list[Tensor], list[Tensor | None]]


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_flatten(tree)[0] if isinstance(x, Tensor)]


def _copied(tree: Any, dtype: torch.dtype) -> Any:
    """The samples with leaves of their own, floats of `dtype`."""

    def copied(x: Any) -> Any:
        if isinstance(x, torch.dtype):
            return dtype if x == torch.float32 else x
        if isinstance(x, nn.Module):
            return copy.deepcopy(x).to(dtype)
        if not isinstance(x, Tensor):
            return x
        y = x.detach().clone()
        return (y.to(dtype) if y.is_floating_point() else y).requires_grad_(x.requires_grad)

    return tree_map(copied, tree)


def outcome(run: Callable[[Any], Any], tree: Any, backward: bool) -> _Outcome:
    """The results for the samples, and the gradients of what needs them."""
    torch.manual_seed(0)
    results = [y for y in _tensors(run(tree)) if y.layout == torch.strided]
    items = tree_flatten(tree)[0]
    parameters = [p for x in items if isinstance(x, nn.Module) for p in x.parameters()]
    leaves = [x for x in [*_tensors(tree), *parameters] if x.requires_grad]
    differentiable = [y for y in results if y.requires_grad]
    gradients: list[Tensor | None] = []
    if backward and leaves and differentiable:
        weights = [
            (torch.arange(1, y.numel() + 1, dtype=torch.float64) / y.numel()).view(y.shape).to(y)
            for y in (x.detach() for x in differentiable)
        ]
        gradients = list(torch.autograd.grad(differentiable, leaves, weights, allow_unused=True))
    return [y.detach() for y in results], gradients


def _near(own: Tensor | None, true: Tensor | None) -> bool:
    if own is None or true is None:
        return all(x is None or not x.any() for x in (own, true))
    if own.shape != true.shape:
        return False
    if not own.is_floating_point() and not own.is_complex():
        return torch.equal(own.double(), true.double())
    finite = true[true.isfinite()]
    size = float(finite.abs().max()) if finite.numel() else 0.0
    return torch.allclose(
        own.double(), true.double(), rtol=2e-5, atol=max(2e-5 * size, 1e-5), equal_nan=True
    )


def difference(ours: _Outcome, other: _Outcome) -> str:
    """Which result or gradient is not near, and by how much; "" if all are."""
    if len(ours[0]) != len(other[0]):
        return f"{len(ours[0])} results, not {len(other[0])}"
    for kind, ours_, others in (("result", ours[0], other[0]), ("gradient", ours[1], other[1])):
        for i, (a, b) in enumerate(zip(ours_, others, strict=False)):
            if not _near(a, b):
                apart = "" if a is None or b is None or a.shape != b.shape else (a - b).abs().max()
                return f"{kind} {i} {None if b is None else tuple(b.shape)}: {apart}"
    return ""


def check(run: Callable[[Any], Any], tree: Any, backward: bool, random: bool) -> str:
    """The outcome of one sample: "right", "wrong: …", "refused: …", or "" if PyTorch raises."""
    try:
        native = outcome(run, _copied(tree, torch.float32), backward)
    except Exception:
        return ""
    try:
        with exact.mode(seed=1):
            ours = outcome(run, _copied(tree, torch.float32), backward)
    except exact.NotExactError as error:
        return _refusal(error)
    except Exception as error:
        return f"wrong: {type(error).__name__} {error}"[:200]
    apart = "" if random else difference(ours, native)
    if apart:
        with contextlib.suppress(Exception):
            apart = difference(ours, outcome(run, _copied(tree, torch.float64), backward))
    return f"wrong: {apart}" if apart else "right"


def _refusal(error: exact.NotExactError) -> str:
    return f"refused: {str(error).partition(' has no')[0][:90]}"


def functions(names: set[str]) -> Iterator[tuple[str, Iterator[str]]]:
    """Each entry of op_db, and the outcomes of its samples."""
    from torch.testing._internal.common_methods_invocations import op_db

    for op in op_db:
        name = op.name + (f", {op.variant_test_name}" if op.variant_test_name else "")
        if names and op.name not in names:
            continue
        dtypes = op.supported_dtypes("cpu")
        wanted = (torch.float32, torch.int64, torch.float64, torch.bool)
        dtype = next((d for d in wanted if d in dtypes), torch.float32)
        backward = op.supports_autograd and dtype.is_floating_point

        def outcomes(op: Any = op, dtype: Any = dtype, backward: bool = backward) -> Iterator[str]:
            random = any(word in op.name for word in _RANDOM_NAMES) and "normalize" not in op.name

            def run(tree: Any) -> Any:
                return op.op(tree[0], *tree[1], **tree[2])

            for sample in op.sample_inputs("cpu", dtype, requires_grad=backward):
                tree = (sample.input, list(sample.args), dict(sample.kwargs))
                chance = random or sample.kwargs.get("dropout_p", 0) > 0
                yield check(run, tree, backward, chance)

        yield name, outcomes()


def modules(names: set[str]) -> Iterator[tuple[str, Iterator[str]]]:
    """Each entry of module_db, and the outcomes of its samples, in training and evaluation."""
    from torch.testing._internal.common_modules import module_db

    for info in module_db:
        if names and info.name not in names:
            continue

        def outcomes(info: Any = info) -> Iterator[str]:
            for training in (True, False):
                samples = info.module_inputs_func(
                    info, device="cpu", dtype=torch.float32, requires_grad=True, training=training
                )
                for sample in samples:
                    if sample.forward_input is None:
                        continue
                    made, given = sample.constructor_input, sample.forward_input
                    try:
                        with exact.mode(seed=1):
                            module = info.module_cls(*made.args, **made.kwargs).train(training)
                    except exact.NotExactError as error:
                        yield _refusal(error)
                        continue
                    tree = (module, list(given.args), dict(given.kwargs))
                    random = info.name.startswith("nn.Lazy") or (
                        training and any(isinstance(m, _RANDOM) for m in module.modules())
                    )
                    yield check(lambda t: t[0](*t[1], **t[2]), tree, True, random)

        yield info.name, outcomes()


_RANDOM_NAMES = (
    "rand",
    "dropout",
    "empty",
    "normal",
    "uniform",
    "bernoulli",
    "multinomial",
    "exponential",
    "cauchy",
    "geometric",
    "rrelu",
    "poisson",
    "fractional",
    "multi_head",
)
_RANDOM = (
    torch.nn.modules.dropout._DropoutNd,
    torch.nn.RReLU,
    torch.nn.MultiheadAttention,
    torch.nn.FractionalMaxPool2d,
    torch.nn.FractionalMaxPool3d,
)


def report(title: str, entries: Iterator[tuple[str, Iterator[str]]]) -> None:
    """Print each entry that is not whole, and the counts."""
    counts: Counter[str] = Counter()
    for name, outcomes in entries:
        started = time.perf_counter()
        try:
            found = Counter(result for result in outcomes if result)
        except Exception as error:  # of PyTorch's own samples
            found = Counter({f"not run: {type(error).__name__} {error}"[:120]: 1})
        kinds = {result.partition(":")[0] for result in found}
        worst = next((k for k in ("wrong", "not run", "refused") if k in kinds), "whole")
        if worst == "refused" and "right" in kinds:
            worst = "partly"
        counts[worst] += 1
        if worst != "whole":
            others = sorted(result for result in found if result != "right")
            print(f"{title}\t{name}\t{worst}\t{' | '.join(others[:4])}", flush=True)
        elif time.perf_counter() - started > 10:
            print(f"{title}\t{name}\tslow\t{time.perf_counter() - started:.0f} s", flush=True)
    print(f"{title}: {sum(counts.values())} entries, {dict(counts)}", flush=True)


def main() -> None:
    """Print the entries of both lists that are not whole, and how many are."""
    warnings.simplefilter("ignore")
    names = set(sys.argv[1:])
    report("module_db", modules(names))
    report("op_db", functions(names))


if __name__ == "__main__":
    main()

"""Every variant of an operation has its bits, and random or unknown ones have none."""

from pathlib import Path
from typing import Any

import pytest
import torch

import exact
from exact import registry
from exact.docs import operations
from exact.registry import aten
from exact.tests.oracle import bits

X = torch.linspace(0.1, 3, 35).view(7, 5)
Y = torch.linspace(2, -2, 35).view(7, 5)
DTYPES = {torch.float64: X.double(), torch.int64: X.long()}
DERIVED: list[tuple[Any, Any, tuple[Any, ...], dict[str, Any]]] = [
    (torch._foreach_exp, torch.exp, (), {}),
    (torch._foreach_mul, torch.mul, (0.3,), {}),
    (torch._foreach_add, torch.add, (Y,), {"alpha": 0.3}),
    (torch._foreach_sub, torch.sub, (Y,), {"alpha": 0.3}),
    (torch._foreach_div, torch.div, (Y,), {}),
    (torch._foreach_lerp, torch.lerp, (Y, 0.3), {}),
    (torch._foreach_addcmul, torch.addcmul, (Y, Y), {"value": 0.3}),
    (torch._foreach_maximum, torch.maximum, (Y,), {}),
    (torch._foreach_clamp_min, torch.clamp_min, (0.5,), {}),
    (torch._foreach_add, torch.add, (Y.double(),), {"alpha": 1}),
    (torch._foreach_pow, torch.pow, (1.5,), {}),
]


@pytest.mark.parametrize(("foreach", "plain", "others", "keywords"), DERIVED)
def test_a_list_of_tensors_has_the_bits_of_each(
    foreach: Any, plain: Any, others: tuple[Any, ...], keywords: dict[str, Any]
) -> None:
    xs = [X, X[2:] * 3, X[:0]]
    lists = [
        [Y[: len(x)] for x in xs] if isinstance(other, torch.Tensor) else other for other in others
    ]
    updated = [x.clone() for x in xs]
    with exact.mode():
        ours = foreach(xs, *lists, **keywords)
        expected = [
            plain(x, *(y[i] if isinstance(y, list) else y for y in lists), **keywords)
            for i, x in enumerate(xs)
        ]
        in_place = getattr(torch, f"{foreach.__name__}_")
        in_place(updated, *lists, **keywords)
    assert bits(ours) == bits(expected) == bits(updated)
    assert [x._version for x in updated] == [1, 1, 1]


def test_out_and_in_place_have_the_same_bits() -> None:
    with exact.mode():
        for plain, arguments in ((torch.exp, ()), (torch.add, (Y,)), (torch.div, (Y,))):
            expected, out, updated = plain(X, *arguments), torch.empty(0), X.clone()
            assert plain(X, *arguments, out=out) is out
            getattr(updated, f"{plain.__name__}_")(*arguments)
            assert bits([expected]) == bits([out]) == bits([updated])
        values, indices = torch.empty(0), torch.empty(0, dtype=torch.int64)
        torch.topk(Y, 2, out=(values, indices))
        assert bits([values, indices]) == bits(list(torch.topk(Y, 2)))
        with pytest.raises(RuntimeError, match="cannot be cast"):
            torch.exp(X, out=torch.empty(7, 5, dtype=torch.int64))
        torch.exp(X, out=torch.empty(0))  # the control


def test_variants_of_random_operations_are_not_derived() -> None:
    assert registry.find(aten.native_dropout.default)  # the control
    assert registry.find(aten.native_dropout.out) is None
    assert registry.find(aten.bernoulli.out) is None


def test_what_cannot_be_registered_is_an_error() -> None:
    for name, message in (
        ("exp", r"aten\.exp\.default is registered twice"),
        ("addd", "addd is no operation"),
        ("add", "overloads of add: Tensor, Scalar"),  # `add` alone is TorchScript's
    ):
        with pytest.raises(ValueError, match=message):
            registry.implements(name)(torch.exp)


def test_of_another_package_what_computes_no_tensors_runs_and_the_rest_is_refused() -> None:
    with torch.library._scoped_library("stranger", "DEF") as library:
        library.define("version() -> int")
        library.impl("version", lambda: 7, "CompositeExplicitAutograd")
        library.define("twice(Tensor x) -> Tensor")
        library.impl("twice", lambda x: 2 * x, "CPU")
        with exact.mode():
            assert torch.ops.stranger.version() == 7
            with pytest.raises(exact.NotExactError, match=r"stranger\.twice"):
                torch.ops.stranger.twice(X)


def test_variants_take_the_arguments_of_their_operation() -> None:
    with exact.mode():
        assert bits([X.clone().pow_(2), X.clone().square_()]) == bits([X**2, X**2])
        assert (X * 9).long().floor_divide_(2).tolist() == ((X * 9).long() // 2).tolist()
        with pytest.raises(exact.NotExactError, match="_foreach_maximum"):
            torch._foreach_maximum([X], 0.5)
    assert registry.find(aten._foreach_add.List_out) is None


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_list_of_other_types_is_promoted_as_natively(dtype: torch.dtype) -> None:
    xs, ys, alpha = [DTYPES[dtype]], [Y.long()[:1]], 3
    native = torch._foreach_add(xs, ys, alpha=alpha)
    updated = [x.clone() for x in xs]
    with exact.mode():
        ours = torch._foreach_add(xs, ys, alpha=alpha)
        torch._foreach_add_(updated, ys, alpha=alpha)
    assert ours[0].dtype == native[0].dtype and torch.equal(ours[0], native[0])
    assert torch.equal(updated[0], native[0])


def test_the_lists_of_operations_are_those_of_the_tables() -> None:
    accepted, refused, composite = operations.statuses()
    assert {"exp", "exp_", "_foreach_exp_", "exp.out"} <= accepted["exp"]
    assert "digamma" in refused and "digamma" not in accepted and composite > 100


def test_a_newcomers_operation_works_as_the_readme_says() -> None:
    text = (Path(exact.__file__).parent / "README.md").read_text()
    code = text.split("<!-- operation -->")[1].split("```python")[1].split("```")[0]
    with exact.mode(), pytest.raises(exact.NotExactError, match="deg2rad"):  # the control
        torch.deg2rad(X)
    names: dict[str, Any] = {}
    try:
        exec(code, names)  # noqa: S102
        with exact.mode():
            ours, updated = torch.deg2rad(X), X.clone().deg2rad_()
            of_integers = torch.deg2rad(torch.tensor([1, 2]))
        torch.testing.assert_close(ours, X.deg2rad())
        torch.testing.assert_close(of_integers, torch.tensor([1, 2]).deg2rad())
        assert bits([ours]) == bits([updated])
    finally:
        registry._REGISTERED.pop(aten.deg2rad.default, None)
        registry.UNSEEDED.clear()

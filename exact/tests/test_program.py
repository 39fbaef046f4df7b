"""A repeated step uses the same memory again, and nobody outside can tell."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import exact
from exact.parts import Repeated
from exact.program import Program
from exact.tests.oracle import bits

G = torch.Generator().manual_seed(0)
IMAGES = torch.randint(0, 256, (40, 12), generator=G).to(torch.uint8)
LABELS = torch.randint(0, 3, (40,), generator=G)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 3))


def both(function: Callable[[Callable[[Any], Any]], Any]) -> None:
    """Compare the bits that the function returns, given exact.compile, with those without."""
    found = []
    for compiled in (exact.compile, lambda step: step):
        with exact.mode(seed=1):
            found.append(bits(function(compiled)))
    assert [a == b for a, b in zip(*found, strict=True)] == [True] * len(found[0])


def training(
    compiled: Any,
    seen: Callable[[int, nn.Module, dict[str, Tensor]], None],
    momentum: float = 0.9,
) -> Any:
    """What seven steps leave; `seen` is called after each."""
    model, images = network(), exact.from_bytes(IMAGES)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum)

    def step(batch: Tensor) -> dict[str, Tensor]:
        outputs = model(images.index_select(0, batch))
        loss = F.cross_entropy(outputs, LABELS.index_select(0, batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss, "outputs": outputs}

    step = compiled(step)
    for number in range(7):
        seen(number, model, step(torch.arange(number, number + 9)))
    return [*model.state_dict().values(), *(p.grad for p in model.parameters())]


@pytest.mark.parametrize(
    "of",
    [
        lambda model, results: [x.detach() for x in results.values()],
        lambda model, results: [p.grad for p in model.parameters()][:1],
        lambda model, results: [p.grad.view(-1)[:2] for p in model.parameters()],
    ],
    ids=["results", "gradients", "views"],
)
def test_what_a_step_returned_and_its_gradients_stay_as_they_were(of: Any) -> None:
    def kept(compiled: Any) -> Any:
        held: list[Tensor] = []
        left = training(compiled, lambda _, model, results: held.extend(of(model, results)))
        return [*left, *held]

    both(kept)


def test_what_is_done_to_results_and_gradients_does_not_matter_to_the_next_step() -> None:
    def changed(number: int, model: nn.Module, results: dict[str, Tensor]) -> None:
        for x in (*results.values(), *(p.grad for p in model.parameters())):
            if number < 6 and x is not None:
                x.fill_(torch.nan)

    both(lambda compiled: training(compiled, changed))


def test_gradients_that_a_step_clears_are_gone() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    @exact.compile
    def step(x: Tensor) -> None:
        model(x).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    with exact.mode():
        for number in range(5):
            step(torch.ones(3, 12) * number)
            assert all(p.grad is None for p in model.parameters())


def test_weights_may_move() -> None:
    def moved(number: int, model: nn.Module, results: dict[str, Tensor]) -> None:
        for p in model.parameters():
            p.data = (p.data + number).t().contiguous().t() if number % 2 else p.data.clone()

    both(lambda compiled: training(compiled, moved))


def test_weights_that_are_not_finite_and_are_so_again() -> None:
    def spoiled(number: int, model: nn.Module, results: dict[str, Tensor]) -> None:
        weights = next(iter(model.parameters())).data
        if number == 3:
            weights[0, 0] = torch.inf
        elif number == 4:
            for x in (*model.state_dict().values(),):
                x.nan_to_num_(0.5, 0.5, 0.5)

    both(lambda compiled: training(compiled, spoiled, momentum=0))


@pytest.mark.parametrize("made", [torch.zeros_like, torch.ones_like, lambda x: torch.arange(6.0)])
def test_a_constant_that_is_changed_or_handed_out_is_made_anew(made: Any) -> None:
    def added(compiled: Any) -> Any:
        def step(x: Tensor) -> Any:
            total, given, seen = made(x), made(x).view(2, 3), made(x) * 2
            total.view(2, 3)[0] += x.view(2, 3)[1]
            return total, given, (seen + x).exp()

        step, found = compiled(step), []
        for number in range(5):
            results = step(torch.arange(6.0) + number)
            found += [x.clone() for x in results]
            results[1].fill_(9)
        return found

    both(added)


def test_an_argument_may_be_changed_and_handed_out() -> None:
    def changed(compiled: Any) -> Any:
        def step(x: Tensor, y: Tensor) -> Any:
            x.view(2, 3)[0].add_(1)
            return x.exp(), y.exp(), y.view(3, 2)

        step, found = compiled(step), []
        for number in range(5):
            x, y = torch.arange(6.0) + number, torch.arange(6.0) - number
            found += [*step(x, y), x]
            found[-2].mul_(2)
            found.append(y)
        return found

    both(changed)


W, V = torch.linspace(-1, 1, 12).view(4, 3), torch.linspace(-2, 1, 12).view(3, 4)


def _gradients(*weights: Tensor) -> list[Tensor]:
    found = [x.grad for x in weights if x.grad is not None]
    for x in weights:
        x.grad = None
    return found


class Previous(torch.optim.Optimizer):
    """Steps by the gradients of the step before, which it holds."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update the weights."""
        for p in self.param_groups[0]["params"]:
            if "before" in self.state[p]:
                p.sub_(self.state[p]["before"])
            self.state[p]["before"] = p.grad


def _with_previous() -> Callable[[Tensor], Any]:
    weight = nn.Parameter(W.clone())
    optimizer = Previous([weight])

    def step(x: Tensor) -> Any:
        optimizer.zero_grad()
        ((x @ weight) ** 2).sum().backward()
        optimizer.step()
        return weight.detach() * 1

    return step


def _with_gru() -> Callable[[Tensor], Any]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = nn.GRU(4, 2, batch_first=True)

    def step(x: Tensor) -> Any:
        layer(x[None])[0].sum().backward()
        return [x * 1 for x in _gradients(*layer.parameters())]

    return step


def _with_view(x: Tensor) -> Any:
    view = x.view(3, 4)
    x.add_(1)
    return view.exp(), x


def _with_statistics(x: Tensor) -> Any:
    mean, variance = torch.zeros(4), torch.ones(4)
    return F.batch_norm(x, mean, variance, training=True), mean * 1, variance * 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: lambda x: x[None] @ W,  # by _unsafe_view, whose schema has no view
        lambda: lambda x: torch.unsafe_chunk(x @ W, 3, 1)[0],
        lambda: lambda x: (x[:1] @ W).expand(100_000, 3),  # which is not small
        lambda: lambda x: torch.arange(3.0)[:, None].expand(3, 4).reshape(-1).add_(x[0, 0]),
        lambda: lambda x: (torch.ones(2, 3, 4) @ torch.ones(4, 3)).add_(x[0, 0]),
        lambda: lambda x: (x @ W).unsqueeze_(0) * 1,
        lambda: lambda x: (x.view(12)[:4].add_(1).exp(), x),
        lambda: lambda x: [(y := x @ W), y.view(-1)],
        lambda: lambda x: [(y := V @ W), y.view(-1), x],
        lambda: lambda x: [(y := V @ W), y, x],
        lambda: _with_view,
        lambda: _with_statistics,
        _with_previous,
        _with_gru,
    ],
)
def test_memory_is_shared_as_without_compilation(make: Callable[[], Any]) -> None:
    def shared(compiled: Any) -> Any:
        step, found = compiled(make()), []
        for number in range(6):
            results = step(V * (number + 1))
            results = list(results) if isinstance(results, tuple | list) else [results]
            found += results
            if results[0].shape[0] < 100_000:
                results[0].mul_(2)  # of others, if they share its memory
        return found

    both(shared)


def test_an_argument_may_have_memory_that_the_step_writes() -> None:
    def overlapping(compiled: Any) -> Any:
        def step(x: Tensor, y: Tensor) -> Any:
            x.add_(1)
            return y.exp()

        step, x = compiled(step), V.clone()
        return [step(x, y.view(-1)) for y in (V, V, V, x, x, V)]

    both(overlapping)


def test_an_argument_may_have_the_memory_of_a_weight() -> None:
    def trained(compiled: Any) -> Any:
        weight = nn.Parameter(W.clone())
        optimizer = torch.optim.SGD([weight], 0.1)

        def step(x: Tensor) -> Any:
            optimizer.zero_grad()
            ((V @ weight) ** 2).sum().backward()
            optimizer.step()
            return x.exp()

        step = compiled(step)
        return [step(weight.detach()) for _ in range(5)]

    both(trained)


def test_a_step_without_gradients_may_be_for_inference() -> None:
    def evaluated(compiled: Any) -> Any:
        step = compiled(lambda chosen: LABELS.index_select(0, chosen))
        with torch.inference_mode():
            found = [step(torch.arange(n, 9)).clone() for n in range(4) for _ in range(4)]
        with torch.no_grad():
            return [*found, *(step(torch.arange(n, 9)) for n in range(4))]

    both(evaluated)


def test_batch_norm_that_nobody_reads_counts_all_the_same() -> None:
    def counted(compiled: Any) -> Any:
        layer = nn.BatchNorm1d(4)

        def step(x: Tensor) -> None:
            layer(x)

        step = compiled(step)
        with torch.no_grad():
            for n in range(5):
                step(V + n)
        return [layer.running_mean, layer.running_var]

    both(counted)


def test_a_returned_weight_has_no_gradient_and_may_become_another_type() -> None:
    layer = nn.Linear(4, 3)
    step = exact.compile(lambda x: [layer.weight, x.to(layer.weight.dtype) @ layer.weight.t()])
    with exact.mode():
        assert not any(step(V)[0].requires_grad for _ in range(4))
        layer.double()
        assert step(V)[1].dtype == torch.float64


def test_threads_may_repeat_a_step_at_once() -> None:
    model, images = network(), exact.from_bytes(IMAGES)
    forward = exact.compile(lambda x: model(x).softmax(1))
    with exact.mode(), torch.no_grad():
        expected = [model(images[n : n + 9]).softmax(1) for n in range(8)]
    wrong: list[int] = []

    def serve(n: int) -> None:
        with exact.mode(), torch.no_grad():
            for _ in range(60):
                if not torch.equal(forward(images[n : n + 9].clone()), expected[n]):
                    wrong.append(n)

    threads = [threading.Thread(target=serve, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    "of",
    [
        lambda x, w: [x @ w],
        lambda x, w: [x @ w * torch.inf, x],
        lambda x, w: [x @ w, x[1:3]],
        lambda x, w: [x @ w, x.sum()],
        lambda x, w: [x @ w, x.t()[2:] * 2],
        lambda x, w: [x @ x.t()],
        lambda x, w: [x[2:] @ w, x[1:3].t() @ x[1:3]],
    ],
)
def test_numbers_of_bytes_are_there_for_whoever_reads_them(of: Any) -> None:
    """A product that a kernel does not decline, as of NaN, reads bytes alone."""
    images, weights = exact.from_bytes(IMAGES), torch.rand(12, 3, generator=G)
    spoiled = weights.clone().fill_(torch.nan)

    def results(compiled: Any) -> Any:
        w = weights.clone()
        step = compiled(lambda batch: of(images.index_select(0, batch), w))
        found = []
        for number in range(9):
            w.copy_(spoiled if number == 5 else weights * number)
            found += step(torch.arange(number, number + 6))
        return found

    both(results)


def test_a_gradient_that_is_a_number_of_bytes_is_there() -> None:
    images = exact.from_bytes(IMAGES)

    class Images(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, weights: Tensor, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return weights.sum()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            return ctx.saved_tensors[0], None

    def gradients(compiled: Any) -> Any:
        weights = torch.zeros(6, 12, requires_grad=True)

        @compiled
        def step(batch: Tensor) -> None:
            weights.grad = None
            Images.apply(weights, images.index_select(0, batch)).backward()

        found = []
        for number in range(7):
            step(torch.arange(number, number + 6))
            found.append(weights.grad)
        return found

    both(gradients)


def test_gradients_that_a_hook_keeps_stay_as_they_were() -> None:
    def kept(compiled: Any) -> Any:
        w, found = nn.Parameter(W.clone()), []
        optimizer = torch.optim.SGD([w], 0.1)
        optimizer.register_step_post_hook(lambda *_: found.append(w.grad))

        @compiled
        def step(i: Tensor) -> None:
            (V.index_select(0, i) @ w).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()

        for number in range(8):
            step(torch.tensor([number % 3]))
        return found

    both(kept)


def test_a_gradient_that_a_hook_changes_and_the_step_reads() -> None:
    def read(compiled: Any) -> Any:
        w = nn.Parameter(W.clone())
        optimizer = torch.optim.SGD([w], 0.1)

        def halve(*_: Any) -> None:
            assert w.grad is not None
            w.grad.mul_(0.5)

        optimizer.register_step_pre_hook(halve)

        @compiled
        def step(i: Tensor) -> Any:
            optimizer.zero_grad()
            (V.index_select(0, i) @ w).square().sum().backward()
            optimizer.step()
            return w.grad.clone() if w.grad is not None else None

        return [step(torch.tensor([1])) for _ in range(5)]

    both(read)


def test_a_returned_view_is_not_the_one_that_the_next_call_uses() -> None:
    def viewed(compiled: Any) -> Any:
        buffer = W.clone()
        step, found = compiled(lambda x: [buffer.view(12), x + 1]), []
        for _ in range(5):
            view, _ = step(torch.ones(1))
            found.append(torch.tensor(view.shape))
            view.unsqueeze_(0)
        return found

    both(viewed)


def test_images_may_be_gathered_for_inference() -> None:
    images = exact.from_bytes(torch.randint(0, 256, (100, 784), generator=G).to(torch.uint8))
    w = torch.ones(784, 10)
    step = exact.compile(lambda i: images.index_select(0, i) @ w)
    with exact.mode(), torch.inference_mode():
        expected = images[:64].clone() @ w
        assert all(torch.equal(step(torch.arange(64)), expected) for _ in range(50))


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[Program]:
    """All programs that are made from now on."""
    if exact.kernels.library() is None:
        pytest.skip("no C compiler")
    programs: list[Program] = []
    original = Program._prepare

    def prepare(self: Program, *args: Any) -> None:
        programs.append(self)
        original(self, *args)

    monkeypatch.setattr(Program, "_prepare", prepare)
    return programs


def by_python(program: Program) -> list[str]:
    """The operations that Python calls each time."""
    groups = [group for group in program._parts if isinstance(group, list)]
    parts = [part for group in groups for part in group]
    return [part.operation.call.operation.name() for part in parts if isinstance(part, Repeated)]


def test_what_is_small_and_has_a_kernel_is_prepared_once(prepared: list[Program]) -> None:
    with exact.mode(seed=1):
        training(exact.compile, lambda *_: None)
    (program,) = prepared  # for all steps
    assert by_python(program) == []


def test_of_a_step_of_floats_only_what_reads_them_is_called_by_python(
    prepared: list[Program],
) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    @exact.compile
    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    with exact.mode(seed=1):
        for _ in range(7):
            step(torch.rand(40, 12), LABELS)
    (program,) = prepared
    of_the_first_layer = ["aten::addmm", "aten::mm", "aten::t", "aten::t"]
    assert by_python(program) == of_the_first_layer

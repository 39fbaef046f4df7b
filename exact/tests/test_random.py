"""The draws are the published ones, distributed as they say, and keyed as they say."""

import hashlib
import math
import statistics

import pytest
import torch

from exact import functions, random
from exact.normal import inverse_normal_cdf

# Random123's known answers for philox4x32-10: counter, key, result.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0xFFFFFFFF,) * 4,
        (0xFFFFFFFF,) * 2,
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]

PERMUTATION = [5, 3, 9, 8, 7, 0, 1, 6, 2, 4]
UNIFORM = ["0x1.51d66c422677dp-1", "0x1.5f0a4aff359a7p-1", "0x1.cc4f0537c1d0ap-1"]
NORMAL = ["0x1.a5e9958e26635p-2", "0x1.ef1782930a5edp-2", "0x1.46aea9f41cebdp+0"]
MANY = "24c8e0753b58dee0304e1340e6ecde9769560d1a0ce630ec347459f2a220fb7a"


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_gives_the_known_answers(
    counter: tuple[int, int, int, int], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    c0, c1, c2, c3 = (torch.tensor([word]) for word in counter)
    assert tuple(word.item() for word in random._philox((c0, c1, c2, c3), key)) == expected


def test_draws_are_frozen() -> None:
    # A change of these is a change of every result in dvc.lock.
    assert random.permutation(10, 1, "frozen").tolist() == PERMUTATION
    assert [x.hex() for x in random.uniform((3,), 1, "frozen").tolist()] == UNIFORM
    assert [x.hex() for x in random.normal((3,), 1, "frozen").tolist()] == NORMAL
    many = random.normal((100_000,), 1, "frozen").numpy().tobytes()
    assert hashlib.sha256(many).hexdigest() == MANY


def test_a_longer_draw_begins_like_a_shorter_one() -> None:
    assert torch.equal(random.normal((10,), 1, "x"), random.normal((1000,), 1, "x")[:10])


@pytest.mark.parametrize("other", [(2, "x", 0), (1, "y", 0), (1, "x", 1), (1, "x", 0, 0), (1, "x")])
def test_every_part_of_the_key_counts(other: tuple[int, str, int]) -> None:
    assert torch.equal(random.uniform((9,), 1, "x", 0), random.uniform((9,), 1, "x", 0))
    assert not torch.equal(random.uniform((9,), 1, "x", 0), random.uniform((9,), *other))


def test_the_inverse_normal_is_the_true_one_in_the_centre_and_both_tails() -> None:
    steps = torch.cat([random.uniform((20_000,), 1, "u"), 2.0 ** -torch.arange(1, 53).double()])
    u = torch.cat([steps, 1 - steps])
    u = u[(u > 0) & (u < 1)]
    expected = [statistics.NormalDist().inv_cdf(value) for value in u.tolist()]
    actual = inverse_normal_cdf(u - 0.5, torch.minimum(u, 1 - u)).tolist()
    assert max(abs(a - e) for a, e in zip(actual, expected, strict=True)) < 1e-13


def test_log_and_sqrt_are_true_to_the_last_places() -> None:
    x = torch.cat(
        [random.uniform((5000,), 1, "x") + 2.0**-60, 2.0 ** torch.arange(-1000, 1000).double()]
    )
    for ours, reference in ((functions.log, math.log), (functions.sqrt, math.sqrt)):
        expected = torch.tensor([reference(value) for value in x.tolist()], dtype=torch.float64)
        error = (ours(x) - expected).abs() / expected.abs().clamp(min=1e-300)
        assert error.max() < 5e-16


def test_numbers_are_distributed_as_promised() -> None:
    n = 400_000
    uniform, normal = random.uniform((n,), 3, "u"), random.normal((n,), 3, "n")
    assert 0 <= uniform.min() < 1e-4 and 1 - 1e-4 < uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 0.002
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3)):
        assert abs((normal**power).mean() - moment) < 0.05


def test_a_permutation_holds_every_number_once_and_each_order_is_as_likely() -> None:
    assert sorted(random.permutation(1000, 1, "p").tolist()) == list(range(1000))
    first = [random.permutation(4, seed, "p").tolist() for seed in range(2400)]
    counts = [first.count(order) for order in {tuple(f): f for f in first}.values()]
    assert len(counts) == 24 and min(counts) > 60 and max(counts) < 145  # 100 ± 4 deviations


@pytest.mark.parametrize("shape", [(0,), (1,), (0, 3), (5, 0), (2, 3, 4), ()])
def test_any_shape(shape: tuple[int, ...]) -> None:
    for draw in (random.uniform, random.normal, random.integers):
        assert draw(shape, 1, "shape").shape == shape


def test_torchs_own_generator_is_not_touched() -> None:
    before = torch.get_rng_state()
    random.normal((10,), 1, "x")
    random.permutation(10, 1, "x")
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)  # the control
    assert not torch.equal(torch.get_rng_state(), before)

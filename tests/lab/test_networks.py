"""Models follow from their seed, are stored whole, and are read back only if they are whole."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import exact
from lab import networks
from lab.common import files
from lab.models import Architecture
from tests.lab.trainings import build


def test_initial_weights_follow_from_the_seed_and_leave_torchs_generator_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = (next(build(seed=i).network.parameters()) for i in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again) and not torch.equal(first, other)


class Images(Architecture):
    """A convolution, which takes images."""

    def build(self, inputs: tuple[int, ...], outputs: int) -> nn.Module:
        channels, _, _ = inputs
        return nn.Sequential(nn.Conv2d(channels, outputs, 3), nn.Flatten())


class Spectral(Architecture):
    """An initialiser that has no exact implementation."""

    def build(self, inputs: tuple[int, ...], outputs: int) -> nn.Module:
        layer = nn.Linear(inputs[0], outputs)
        layer.weight.data.div_(torch.linalg.matrix_norm(layer.weight.data, 2))
        return layer


def test_an_initializer_without_exact_implementation_is_named() -> None:
    with pytest.raises(files.InputError, match=r"^exact arithmetic: aten\."):
        networks.build("spectral", Spectral(), torch.zeros(2, 5), 4, 1)


def test_an_architecture_that_does_not_fit_the_examples_is_refused() -> None:
    fitting = networks.build("images", Images(), torch.zeros(2, 1, 3, 3), 4, 1)  # the control
    assert fitting.shape.outputs == 4
    for shape, reason in (
        ((2, 5), "not enough values to unpack"),
        ((2, 1, 2, 2), "Kernel size can't be greater than"),
        ((2, 1, 4, 3), "it returns (1, 8) for one example, not (1, 4)"),
    ):
        message = f"images does not fit examples of shape {shape[1:]}: "
        with pytest.raises(files.InputError, match=re.escape(message) + ".*" + re.escape(reason)):
            networks.build("images", Images(), torch.zeros(shape), 4, 1)


def test_layers_are_the_modules_with_parameters_of_their_own() -> None:
    assert list(networks.layers(build(16, 8).network)) == ["hidden_1", "hidden_2", "output"]
    nested = nn.Sequential(nn.Sequential(nn.Linear(1, 1)), nn.Tanh())
    assert list(networks.layers(nested)) == ["0_0"]
    assert list(networks.layers(nn.Linear(1, 1))) == ["network"]


def test_a_model_reads_back_and_its_file_is_always_the_same(tmp_path: Path) -> None:
    model = build(16, 8, dropout=0.5)
    for name in ("a", "a-longer-name"):
        model.save(tmp_path / name)
    assert files.sha256(tmp_path / "a") == files.sha256(tmp_path / "a-longer-name")
    back = networks.load(tmp_path / "a")
    assert back[:3] == model[:3] and not back.network.training
    with exact.mode():
        x = torch.ones(networks.BATCH + 1, 5)  # more than one batch
        assert torch.equal(back.predict(x), model.predict(x))  # without dropout


def test_to_load_a_model_does_not_load_the_compiler(tmp_path: Path) -> None:
    code = "import sys; from lab import networks; from pathlib import Path"
    code += "; networks.load(Path(sys.argv[1])); print('torch._dynamo' in sys.modules)"
    for model in (build(), build(16)):
        model.save(tmp_path / "model")
        command = [sys.executable, "-c", code, str(tmp_path / "model")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout == "False\n"


def test_features_of_another_shape_are_refused() -> None:
    for shape in ((4, 6), (4, 5, 1)):
        with pytest.raises(files.InputError, match=r"shape \(5,\), the data have \([65]"):
            build(16).predict(torch.ones(shape))

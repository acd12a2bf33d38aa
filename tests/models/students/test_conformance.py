"""Every registered student family keeps the same contract."""

import pytest
import torch

from autocompress.models.students import STUDENTS, ResNet, ShuffleNetV2
from autocompress.models.trace import trace

WIDER = {
    "mobilenetv2": {"width": 1.0},
    "plain_cnn": {"widths": (32, 64, 64, 64)},
    "resnet": {"widths": (32, 64, 128)},
    "shufflenetv2": {"widths": (64, 128, 256)},
}


def count(model):
    return sum(value.numel() for value in model.parameters())


@pytest.mark.parametrize("name", sorted(STUDENTS))
@pytest.mark.parametrize(("channels", "pixels", "classes"), [(1, 28, 10), (3, 32, 7)])
def test_shapes(name, channels, pixels, classes):
    model = STUDENTS[name](in_channels=channels, num_classes=classes).eval()
    x = torch.randn(2, channels, pixels, pixels)
    assert model(x).shape == (2, classes)
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize("name", sorted(STUDENTS))
def test_width_is_an_argument(name):
    assert count(STUDENTS[name](**WIDER[name])) > count(STUDENTS[name]())


@pytest.mark.parametrize("name", sorted(STUDENTS))
def test_units_are_found(name):
    model = STUDENTS[name](in_channels=1).eval()
    network = trace(model, (torch.randn(1, 1, 28, 28),))
    assert len(network.units) >= 4
    last = network.layers[-1].name
    assert "output" in network.fixed[last]


def test_resnet_depths_and_shortcuts():
    assert count(ResNet(in_channels=3, shortcut="pad")) == 269_722
    assert len([m for m in ResNet(depth=9).modules() if isinstance(m, torch.nn.Conv2d)]) == 57
    with pytest.raises(ValueError, match="shortcut"):
        ResNet(shortcut="none")
    with pytest.raises(ValueError, match="even"):
        ShuffleNetV2(widths=(47, 96, 192))

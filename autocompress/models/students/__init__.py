"""Light architectures with widths and depths as arguments; they become student families."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import nn

from autocompress.models.students.mobilenetv2 import MobileNetV2
from autocompress.models.students.plain_cnn import PlainCNN
from autocompress.models.students.resnet import ResNet
from autocompress.models.students.shufflenetv2 import ShuffleNetV2

__all__ = ["STUDENTS", "MobileNetV2", "PlainCNN", "ResNet", "ShuffleNetV2"]

#: Factories by name; each takes in_channels and num_classes beside its own arguments.
STUDENTS: Mapping[str, Callable[..., nn.Module]] = MappingProxyType(
    {
        "mobilenetv2": MobileNetV2,
        "plain_cnn": PlainCNN,
        "resnet": ResNet,
        "shufflenetv2": ShuffleNetV2,
    }
)

"""ResNet-18 with a 3 x 3 stem, without biases and affine parameters."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ResNet18"]

_BLOCKS = 2
_STAGES = 4


def _convolution(inputs: int, outputs: int, side: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, side, stride, padding=side // 2, bias=False)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, affine=False)


class _Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _convolution(inputs, outputs, 3, stride)
        self.norm1 = _norm(outputs)
        self.conv2 = _convolution(outputs, outputs, 3)
        self.norm2 = _norm(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut.append(_convolution(inputs, outputs, 1, stride))
            self.shortcut.append(_norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet18(nn.Module):
    """The network of Table 3.

    Args:
        width: channels of the stem and the first stage; 64 in the report.
        classes: outputs.
    """

    def __init__(self, width: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(_convolution(3, width, 3), _norm(width), nn.ReLU())
        stages: list[nn.Module] = []
        channels = width
        for stage in range(_STAGES):
            for block in range(_BLOCKS):
                outputs = width << stage
                stride = 2 if stage > 0 and block == 0 else 1
                stages.append(_Residual(channels, outputs, stride))
                channels = outputs
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(channels, classes, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [n, classes] of images [n, 3, 32, 32]."""
        features: Tensor = self.stages(self.stem(images)).mean(dim=(2, 3))
        logits: Tensor = self.head(features)
        return logits

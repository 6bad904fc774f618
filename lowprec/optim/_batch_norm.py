"""Statistics of batch normalization for weights that were quantized after training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def reestimate_batch_norm(model: nn.Module, batches: Iterable[Any]) -> None:
    r"""Replace running statistics by those of the model's weights as they are.

    .. math::
        \mu = \frac1B \sum_b \mu_b, \qquad \sigma^2 = \frac1B \sum_b \sigma_b^2

    over the batches, with the unbiased variance that torch's layers keep.

    Contract:
        Everything but the statistics is as before, modes of training included; other
        modules run as in evaluation. If it raises, the statistics are as before too.

    Args:
        model: any module; layers without running statistics are left alone.
        batches: inputs; of a tuple or list, as loaders give them, the first entry.

    Raises:
        ValueError: if there is no batch.

    Example:
        >>> model = nn.BatchNorm1d(1)
        >>> reestimate_batch_norm(model, [torch.tensor([[1.0], [3.0]])])
        >>> model.running_mean.item(), model.running_var.item()
        (2.0, 2.0)
    """
    layers = _layers(model)
    kept = [(layer, layer.momentum, _statistics(layer)) for layer in layers]
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        for layer in layers:
            layer.train()
            layer.reset_running_stats()
            layer.momentum = None  # the mean over all batches
        count = 0
        for batch in batches:
            model(batch[0] if isinstance(batch, tuple | list) else batch)
            count += 1
        if count == 0:
            raise ValueError("statistics need at least one batch, got none")
    except BaseException:
        for layer, _, statistics in kept:
            _restore(layer, statistics)
        raise
    finally:
        for layer, momentum, _ in kept:
            layer.momentum = momentum
        for module, training in modes:
            module.training = training


@contextmanager
def reestimated_batch_norm(model: nn.Module, batches: Iterable[Any]) -> Iterator[None]:
    """Evaluate with `reestimate_batch_norm`; the statistics come back bit for bit.

    Enter it inside ``optimizer.quantized()``, so that it sees quantized weights.

    Args:
        model: as `reestimate_batch_norm`.
        batches: as `reestimate_batch_norm`.

    Raises:
        ValueError: as `reestimate_batch_norm`.

    Example:
        >>> model = nn.BatchNorm1d(1)
        >>> with reestimated_batch_norm(model, [torch.tensor([[1.0], [3.0]])]):
        ...     model.running_mean.item()
        2.0
        >>> model.running_mean.item()
        0.0
    """
    kept = [(layer, _statistics(layer)) for layer in _layers(model)]
    reestimate_batch_norm(model, batches)
    try:
        yield
    finally:
        for layer, statistics in kept:
            _restore(layer, statistics)


def _layers(model: nn.Module) -> list[_BatchNorm]:
    return [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
    ]


def _statistics(layer: _BatchNorm) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in layer.named_buffers(recurse=False)}


@torch.no_grad()
def _restore(layer: _BatchNorm, statistics: dict[str, Tensor]) -> None:
    for name, buffer in layer.named_buffers(recurse=False):
        buffer.copy_(statistics[name])

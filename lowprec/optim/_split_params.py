"""Which parameters of a model are quantized."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

_FLOAT_MODULES = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.PReLU,
)
# Those of recurrent layers and of attention too.
_WEIGHTS = ("weight", "weight_[ih]h*", "weight_hr*", "*_proj_weight")


def split_params(
    model: nn.Module,
    *,
    quantize: Sequence[str] = _WEIGHTS,
    exclude: tuple[type[nn.Module], ...] = _FLOAT_MODULES,
    skip_first: bool = False,
    skip_last: bool = False,
    bias: bool = False,
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Split a model's parameters into those to quantize and the others.

    Contract:
        Every parameter is in exactly one list, in the order of ``model.parameters()``;
        one that is shared between modules is quantized only if no module keeps it.

    Args:
        model: any module.
        quantize: names of the parameters to quantize, without their modules' names,
            as patterns of ``fnmatch``; by default the weights of all layers that
            multiply, those of recurrent layers and attention included.
        exclude: types of modules whose parameters stay; by default normalizations,
            embeddings and PReLU.
        skip_first: whether the first module that has such parameters keeps them.
        skip_last: whether the last one does.
        bias: whether to quantize parameters whose names begin with ``bias`` too.

    Returns:
        Parameters to quantize, and all others.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 1))
        >>> weights, others = split_params(model, skip_last=True)
        >>> len(weights), len(others)
        (1, 5)
    """
    patterns = [*quantize, "bias*"] if bias else quantize

    def wanted(name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in patterns)

    candidates = [
        module
        for module in model.modules()
        if not isinstance(module, exclude)
        and any(wanted(name) for name, _ in module.named_parameters(recurse=False))
    ]
    first, last = int(skip_first), len(candidates) - int(skip_last)
    chosen = {id(module) for module in candidates[first:last]}
    votes: dict[nn.Parameter, bool] = {}
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            votes[p] = votes.get(p, True) and id(module) in chosen and wanted(name)
    params = list(model.parameters())
    return [p for p in params if votes[p]], [p for p in params if not votes[p]]

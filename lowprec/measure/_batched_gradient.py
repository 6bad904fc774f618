"""The gradient of a per-sample loss at many parameters, traced once into a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.func import functional_call, functionalize, grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx

# loss(x, *sample): a scalar, of one parameter vector [d] and one sample.
SampleLoss = Callable[..., Tensor]

_aten = torch.ops.aten
# Their values depend on the shapes of their operands alone.
_SHAPE_ONLY = {
    _aten.full_like.default,
    _aten.new_full.default,
    _aten.new_ones.default,
    _aten.new_zeros.default,
    _aten.ones_like.default,
    _aten.zeros_like.default,
}


def trace_gradient(loss: SampleLoss, x: Tensor, samples: tuple[Tensor, ...]) -> Any:
    """Return vmap(grad(loss)) as a graph of torch operations.

    The graph does the operations that ``vmap(grad(loss))`` does, with the same bits,
    but neither transforms anything again nor computes what the gradient does not need.

    Args:
        loss: of one parameter vector [d] and one sample, a scalar.
        x: parameters [M, d] of the shape and dtype of all later calls.
        samples: M samples, the first dimension of every tensor.

    Returns:
        Function of ``x`` and the samples, of these shapes; the gradients, [M, d].
    """

    def one(x: Tensor, *sample: Tensor) -> Tensor:  # the tracer miscounts methods
        return loss(x, *sample)

    graph = make_fx(vmap(grad(one)))(x, *samples)
    # Without operations in place, a constant that is kept stays what it is.
    graph = make_fx(functionalize(graph))(x, *samples)
    values = _Values(graph)
    values.run(x, *samples)
    _fold_constants(graph, values.of)
    return graph


class _Values(fx.Interpreter):
    """Run a graph and keep the value of every node."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph, garbage_collect_values=False)
        self.of: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.of[n] = super().run_node(n)
        return self.of[n]


def _fold_constants(module: fx.GraphModule, values: dict[fx.Node, Any]) -> None:
    """Put constants in the place of what no input influences; drop what is unused."""
    graph = module.graph
    constant: set[fx.Node] = set()
    for node in graph.nodes:
        computed = node.op == "call_function" and not _is_undefined(node.target)
        of_constants = all(one in constant for one in node.all_input_nodes)
        if node.op == "get_attr" or (
            computed and (of_constants or node.target in _SHAPE_ONLY)
        ):
            constant.add(node)
    for node in list(graph.nodes):
        if node not in constant:
            continue
        if node.op == "get_attr" or all(user in constant for user in node.users):
            continue
        name = f"constant_{node.name}"
        module.register_buffer(name, values[node], persistent=False)
        with graph.inserting_before(node):
            node.replace_all_uses_with(graph.get_attr(name))
    graph.eliminate_dead_code()
    module.recompile()


def _is_undefined(target: Any) -> bool:
    """Whether two calls with the same operands may differ."""
    return torch.Tag.nondeterministic_seeded in getattr(target, "tags", ()) or (
        "empty" in str(target)
    )


def module_loss(
    module: torch.nn.Module, criterion: Callable[..., Tensor]
) -> tuple[SampleLoss, Tensor]:
    """Return the loss of a module as a function of one flat parameter vector.

    Args:
        module: maps an input without batch dimension to an output; not changed.
        criterion: of the output and the rest of a sample, a scalar.

    Returns:
        ``loss(x, input, *rest)``, and the module's parameters in one vector, in the
        order of ``named_parameters()``.

    Raises:
        ValueError: if the module has no parameters, or of several dtypes.

    Example:
        >>> layer = torch.nn.Linear(2, 1, bias=False, dtype=torch.float64)
        >>> loss, x = module_loss(layer, lambda output, y: (output - y).square().sum())
        >>> sample = torch.ones(2, dtype=torch.float64), torch.zeros(1)
        >>> bool(loss(x, *sample) == x.sum().square())
        True
    """
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    dtypes = {p.dtype for p in parameters.values()}
    if len(dtypes) != 1:
        found = ", ".join(sorted(map(str, dtypes))) or "none"
        raise ValueError(
            f"module must have parameters of one dtype, got {found}: "
            "use module.double()"
        )
    sizes = [p.numel() for p in parameters.values()]

    def loss(x: Tensor, inputs: Tensor, *rest: Tensor) -> Tensor:
        parts = zip(parameters.items(), x.split(sizes), strict=True)
        given = {name: part.view(p.shape) for (name, p), part in parts}
        return criterion(functional_call(module, given, (inputs,)), *rest)

    return loss, torch.cat([p.reshape(-1) for p in parameters.values()])

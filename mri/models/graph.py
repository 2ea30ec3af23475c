"""What a loaded network would compute, looked at before it computes anything.

A configuration hides sizes inside wrappers, cells and attention; the graph of one slice hides none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from mri.models.cards import ModelFileError

MAX_NUMBERS = 2**24
"""Numbers that any step may give for one slice: 1024 channels at full size, 64 MB."""

_MAX_BATCH = 2**26
_MAX_STEPS = 30_000
_MAX_UNROLLED = 64
# Layers whose outputs are all that they ever hold: `ModelFile.load` has measured those.
_FLAT = re.compile(
    r"Input|Dense$|Conv|Pool|Batch|LayerNorm|Group|Unit|Activation|ReLU|Softmax|PReLU|ELU|Leaky|"
    r"Drop|Flatten|Reshape|Permute|Add$|Sub|Mult|Concat|Average|Max|Min|Dot$|Zero|Crop|UpSampl|"
    r"Rescaling|Normalization|Random|Gaussian|Repeat|Functional|Sequential|Model$|Resizing|Ident|"
    r"Cast|GetItem|Operation"
)


def check_graph(path: Path, model: Any) -> None:
    """Raise `ModelFileError` if a step of the network gives far more numbers than a slice has.

    Nothing of the model is run; messages name `path`.
    """
    from mri._keras import tf

    layers = list(model._flatten_layers(include_self=False, recursive=True))
    names = {type(layer).__name__ for layer in layers}
    if all(_FLAT.match(name) and "LSTM" not in name for name in names):
        return  # Tracing a large plain network would take longer than running it once.
    for layer in layers:
        unrolled = getattr(layer, "unroll", False) or type(layer).__name__ == "TimeDistributed"
        steps: int | None = 1
        with suppress(AttributeError, ValueError, TypeError, IndexError):
            steps = layer.input.shape[1]
        if unrolled and (steps is None or steps > _MAX_UNROLLED):
            raise ModelFileError(
                f"{path}: {layer.name} repeats its steps {steps} times, the limit is "
                f"{_MAX_UNROLLED}"
            )
    specs = [tf.TensorSpec((1, *x.shape[1:]), x.dtype) for x in model.inputs]
    call = tf.function(lambda *x: model(x[0] if len(x) == 1 else list(x), training=False))
    graph = call.get_concrete_function(*specs).graph
    count, numbers, name = _measured(graph)
    if count > _MAX_STEPS:
        raise ModelFileError(f"{path}: its network has more than {_MAX_STEPS} steps")
    if numbers > MAX_NUMBERS:
        raise ModelFileError(
            f"{path}: a step of its network, {name:.80}, gives {numbers} numbers for one slice, "
            f"the limit is {MAX_NUMBERS}"
        )


def fitting_batch(graph: Any, batch_size: int) -> int:
    """Return how many slices, at most `batch_size`, keep each step of a trace below 256 MB.

    The trace is of an open number of slices.
    """
    return max(1, min(batch_size, _MAX_BATCH // max(1, _measured(graph, of_slices=True)[1])))


def _measured(graph: Any, *, of_slices: bool = False) -> tuple[int, int, str]:
    """Return the number of steps, how many numbers the largest gives for one slice, and its name.

    With `of_slices`, of those alone whose result depends on the number of slices.
    """
    steps, most, name = 0, 0, ""
    for operation in _operations(graph):
        steps += 1
        if steps > _MAX_STEPS:
            break
        # Weights are read from the file, and so no larger than it.
        if operation.type in ("ReadVariableOp", "Placeholder"):
            continue
        for output in operation.outputs:
            shape = output.shape.as_list() if output.shape.rank is not None else []
            if of_slices and None not in shape:
                continue
            numbers = math.prod(side for side in shape if side is not None)
            if numbers > most:
                most, name = numbers, operation.name
    return steps, most, name


def _operations(graph: Any) -> Iterator[Any]:
    """Yield the operations of a graph, and of the functions that loops and branches call."""
    graphs = [graph]
    for of in graphs:
        yield from of.get_operations()
        inner = (getattr(fn, "graph", None) for fn in getattr(of, "_functions", {}).values())
        graphs += [of for of in inner if of is not None and not any(of is g for g in graphs)]

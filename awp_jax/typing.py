"""The words of this library's signatures, with their shapes.

Aliases, not classes: a checker reads them as what they stand for, and ``help`` shows the shape, in
the manner of jaxtyping (``Float[Array, "batch ..."]``: the element type, then the axes by name).

Example:
    >>> from awp_jax.typing import Labels, Logits, Losses
    >>> def loss(logits: Logits, labels: Labels) -> Losses: ...
"""

from collections.abc import Callable
from typing import Annotated, Any, TypeAlias

import jax

PyTree: TypeAlias = Any
"""Nested dicts, lists, tuples, NNX states, Equinox modules, ... of arrays."""

Key: TypeAlias = Annotated[jax.Array, "Key[Array, ''] or Key[Array, 'batch'], one for each example"]
"""A typed key, ``jax.random.key(0)``."""

Inputs: TypeAlias = Annotated[PyTree, "Float[Array, 'batch ...']"]
"""What an attack moves: an array, or a pytree of arrays that share the first axis."""

Images: TypeAlias = Annotated[PyTree, "Float[Array, 'batch height width channels'], in [0, 1]"]

Labels: TypeAlias = Annotated[PyTree, "Int[Array, 'batch']"]
"""Classes; a task of one's own (``loss=``, ``success=``) has targets of any form here."""

Outputs: TypeAlias = Annotated[PyTree, "Float[Array, 'batch ...']"]
"""What a model returns: logits, or whatever ``loss=`` and ``success=`` understand."""

Logits: TypeAlias = Annotated[jax.Array, "Float[Array, 'batch classes']"]

Losses: TypeAlias = Annotated[jax.Array, "Float[Array, 'batch']"]
"""One value for each example, in nats where it is a cross-entropy."""

Flags: TypeAlias = Annotated[jax.Array, "Bool[Array, 'batch']"]
"""One answer for each example."""

Scalar: TypeAlias = Annotated[jax.Array, "Float[Array, '']"]

Params: TypeAlias = Annotated[PyTree, "of Float[Array, '...']"]
"""Weights w."""

Displacement: TypeAlias = Annotated[PyTree, "of Float[Array, '...'], with the structure of Params"]
"""What is added to weights, v."""

Gradients: TypeAlias = Annotated[PyTree, "with the structure of what was differentiated in"]

BatchStats: TypeAlias = Annotated[PyTree, "of Float[Array, 'channels']"]
"""The running statistics of BatchNorm."""

Number: TypeAlias = Annotated[Any, "int, float, '8/255', or Float[Array, '']"]

Radius: TypeAlias = Annotated[
    Any, "Number, Float[Array, 'batch'], one for each feature or leaf; of weights also a schedule"
]
"""How far a ball reaches; balls say which of these forms they take."""

LogitsFn: TypeAlias = Callable[..., Outputs]
"""``(inputs) -> logits``; a randomised model's takes ``(inputs, key)``."""

ApplyFn: TypeAlias = Callable[[Params, Inputs], Logits]

LossFn: TypeAlias = Callable[[Outputs, Labels], Losses]

SuccessFn: TypeAlias = Callable[[Outputs, Labels], Flags]

Attack: TypeAlias = Callable[..., Any]
"""``(logits_fn, key, inputs, labels) -> AttackResult``: ours, or one's own."""

GradFn: TypeAlias = Callable[[Params], Any]
"""``(params) -> gradients``, or ``(gradients, aux)``."""

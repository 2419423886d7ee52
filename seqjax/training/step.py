# SPDX-License-Identifier: Apache-2.0
"""One training step and one evaluation step, as pure jitted functions.

All that a loop of your own needs:

    state = init_state(model.init(key, xs), optimizer)
    step = make_train_step(model, mean_squared_error, optimizer)
    for batch in batches:
        state, metrics = step(state, batch, key)
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from seqjax import require
from seqjax.base import Array, Carry, Key, Layer, Mask, Params
from seqjax.layers.inner import check_layers
from seqjax.norms import global_norm
from seqjax.training.batch import Batch, as_batch, batch_in_time, shapes_as_given
from seqjax.training.losses import CALL, Loss, weight
from seqjax.training.optimizers import check_optimizer, forget_clipping, was_clipped
from seqjax.training.state import TrainState, check_state

Metrics = dict[str, Array]
METRICS = ("loss", "grad_norm", "clipped", "clipped_steps", "skipped", "skipped_steps")
"""What a training step reports."""


TrainStep = Callable[[TrainState, Batch, Key], tuple[TrainState, Metrics]]
EvalStep = Callable[[Params, Batch], dict[str, tuple[Array, Array]]]


def make_train_step(
    model: Layer,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    stateful: bool = False,
    donate: bool = False,
) -> TrainStep:
    """A jitted `step(state, batch, key) -> (state, metrics)`.

    A batch may also be a tuple of a `Batch`'s fields. `key` belongs to the run: step t uses `fold_in(key, t)`, so you
    pass the same key to every step, and a resumed run draws what an uninterrupted one would. `None` trains without
    randomness.

    A step is skipped if the loss, the gradient's norm, the update or the new carry is not finite, or if a finite entry
    of the params or the opt_state would no longer be (such as the square of a gradient, after which nothing would
    move). Then params, opt_state and carry stay bit for bit what they were, `skipped` rises and `step` advances.
    (`optax.apply_if_finite`, by contrast, lets a bad update through after a number of them.)

    Args:
      model: any layer; unless `stateful`, its carry starts at the initial carry.
      loss: `loss(predictions, targets, mask) -> scalar`.
      optimizer: any optax transformation; clip with `clipped`. Those that accept extra arguments get
        `value`, `grad` and `value_fn`.
      stateful: the model continues from `state.carry` and leaves its last carry there, for batches that
        are consecutive windows of long sequences: truncated backpropagation through time in the memory
        of one window. `batch.resets` says where a new sequence begins. Windows must be multiples of the
        model's stride.
      donate: the step may overwrite the state it is given, which is then gone. This saves a copy of the
        params and the optimizer's state; use it only if you keep no other reference to them.

    Raises:
      ValueError: a `model` that is not a layer, or, if stateful, one that does not stream; a `loss` that is not a
        function; an `optimizer` that is not an optax transformation; from the step: anything but a state, a batch and
        a key; targets that the loss cannot take; a window that is not a multiple of the model's stride; a state
        without the model's carry, or a state with a carry although training is not stateful.

    Returns:
      The step. Its metrics are `loss`, `grad_norm` (global L2 norm before clipping), `clipped` (bool: a `clip` in the
      optimizer changed the gradient), `skipped` (bool), and how many of each there were so far: `clipped_steps` and
      `skipped_steps` (int32).

    >>> import seqjax
    >>> from seqjax.training import clipped, init_state, mean_squared_error
    >>> model, optimizer = seqjax.Dense(1), clipped(optax.sgd(0.1), norm=1.0)
    >>> batch = Batch(xs=jnp.ones((5, 2, 3), jnp.float32), ys=jnp.full((5, 2, 1), 9, jnp.float32))
    >>> state = init_state(model.init(jax.random.key(0), batch.xs), optimizer)
    >>> state, metrics = make_train_step(model, mean_squared_error, optimizer)(state, batch, None)
    >>> int(state.step), bool(metrics["clipped"]), bool(metrics["skipped"])
    (1, True, False)
    """

    check_layers("make_train_step", model)
    check_optimizer("make_train_step", optimizer)
    require.functions("make_train_step", loss=(loss, CALL))
    require.hashable("make_train_step", loss=loss)
    if stateful and not model.streams:
        raise ValueError(f"stateful training needs a model that streams; {model!r} does not.")
    step = _donating_step if donate else _step
    return functools.partial(step, model, loss, optimizer, stateful)


def make_eval_step(model: Layer, metrics: Mapping[str, Loss]) -> EvalStep:
    """A jitted `step(params, batch) -> {name: (mean, weight)}`, without randomness.

    Args:
      model: any layer; its carry starts at the initial carry.
      metrics: losses by name.

    Returns:
      The step; `weight` is the number of steps over which the mean is taken.

    Raises:
      ValueError: a `model` that is not a layer, or metrics that are not losses by name.

    >>> import seqjax
    >>> from seqjax.training import mean_squared_error
    >>> model, batch = seqjax.Activation("relu"), Batch(jnp.ones((5, 2, 3)), jnp.zeros((5, 2, 3)))
    >>> mean, weight = make_eval_step(model, {"mse": mean_squared_error})((), batch)["mse"]
    >>> float(mean), int(weight)
    (1.0, 10)
    """
    check_layers("make_eval_step", model)
    if not isinstance(metrics, Mapping):
        raise ValueError(
            f"make_eval_step: metrics must be losses by name, such as {{'accuracy': accuracy}}, got {metrics!r}."
        )
    require.functions("make_eval_step", **{str(name): (loss, CALL) for name, loss in metrics.items()})
    require.hashable("make_eval_step", **{str(name): loss for name, loss in metrics.items()})
    return functools.partial(_evaluate, model, tuple(metrics.items()))


def evaluate(step: EvalStep, params: Params, batches: Iterable[Batch]) -> dict[str, float]:
    """The means of an evaluation step over all batches, each batch weighted by its number of steps.

    Args:
      step: as returned by `make_eval_step`.
      params: the model's params.
      batches: any number of them, at least one.

    Returns:
      The means, by the names of the metrics; 0 where no step of any batch is valid.

    Raises:
      ValueError: no batches, or a `step` that is not a function.

    >>> import seqjax
    >>> from seqjax.training import mean_squared_error
    >>> step = make_eval_step(seqjax.Activation("relu"), {"mse": mean_squared_error})
    >>> ones = jnp.ones((5, 2, 3))
    >>> evaluate(step, (), [Batch(ones, 0 * ones), Batch(ones, ones)])
    {'mse': 0.5}
    """
    require.functions("evaluate", step=(step, "step(params, batch), as make_eval_step returns it"))
    results = [step(params, batch) for batch in batches]
    if not results:
        raise ValueError("evaluate was given no batches; an iterator can be used only once, a list repeatedly.")
    means = {}
    for name in results[0]:
        weights = [int(result[name][1]) for result in results]
        total = sum(float(result[name][0]) * n for result, n in zip(results, weights, strict=True))
        means[name] = total / max(sum(weights), 1)
    return means


# Model, loss and optimizer are static; equal ones share one compilation.


def _train(
    model: Layer,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    stateful: bool,
    state: TrainState,
    batch: Batch | tuple,
    key: Key,
) -> tuple[TrainState, Metrics]:
    check_state("a training step", state)
    require.key("a training step", key)
    batch = as_batch(batch)
    _check_carry(model, stateful, state, batch)
    if key is not None:
        key = jax.random.fold_in(key, state.step)

    def objective(params: Params) -> tuple[Array, Carry]:
        start = state.carry if stateful else None
        carry, predictions, targets, mask = _predict(model, params, start, batch, key)
        with shapes_as_given(model, batch):
            return _number("the loss", loss(predictions, targets, mask)), carry if stateful else ()

    (value, carry), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
    # leaves may differ in dtype, and optax mixes its int32 count with floats
    with jax.numpy_dtype_promotion("standard"):
        grad_norm = global_norm(grads)
        updates, opt_state = optax.with_extra_args_support(optimizer).update(
            grads,
            forget_clipping(state.opt_state),
            state.params,
            value=value,
            grad=grads,
            value_fn=lambda p: objective(p)[0],
        )
        params = optax.apply_updates(state.params, updates)

    finite = _all_finite((value, grad_norm, updates, carry))
    finite &= _stays_finite((params, opt_state), (state.params, state.opt_state))
    params, kept_opt_state, carry = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old),
        (params, opt_state, carry),
        (state.params, state.opt_state, state.carry),
    )
    bad = (~finite).astype(jnp.int32)
    skipped = state.skipped + bad
    clipped = was_clipped(opt_state) & finite
    clipped_steps = state.clipped + clipped.astype(jnp.int32)
    told = value, grad_norm, clipped, clipped_steps, ~finite, skipped
    metrics = dict(zip(METRICS, told, strict=True))
    return TrainState(
        step=state.step + 1,
        params=params,
        opt_state=kept_opt_state,
        skipped=skipped,
        skipped_in_row=(state.skipped_in_row + 1) * bad,
        clipped=clipped_steps,
        carry=carry,
    ), metrics


_step = jax.jit(_train, static_argnums=(0, 1, 2, 3))
_donating_step = jax.jit(_train, static_argnums=(0, 1, 2, 3), donate_argnums=(4,))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _evaluate(
    model: Layer, metrics: tuple[tuple[str, Loss], ...], params: Params, batch: Batch | tuple
) -> dict[str, tuple[Array, Array]]:
    if isinstance(params, TrainState):
        raise ValueError("an evaluation step takes the params alone: state.params, not the TrainState.")
    batch = as_batch(batch)
    _, predictions, targets, mask = _predict(model, params, None, batch, None)
    with shapes_as_given(model, batch):
        return {
            name: (_number(f"the metric {name!r}", loss(predictions, targets, mask)), weight(loss, predictions, mask))
            for name, loss in metrics
        }


def _number(name: str, value: Any) -> Array:
    """`value`, which a function of the user's returned, if it is one number."""
    if getattr(value, "shape", None) != () or not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(f"{name} must be a floating-point scalar, shape (), got {require.shown(value)}.")
    return value


def _predict(
    model: Layer, params: Params, carry: Carry | None, batch: Batch, key: Key
) -> tuple[Carry, Array, Array, Mask]:
    """The carry, outputs, targets and output mask, starting from `carry` or the initial one; axis 0 is always time."""
    model, batch = batch_in_time(model, batch)
    if carry is None:
        carry = model.initial_carry(params, model.batch_shape(batch.xs))
    elif batch.xs.shape[0] % model.stride:
        raise ValueError(
            f"stateful training: a window must be a multiple of the model's stride {model.stride}, "
            f"got {batch.xs.shape[0]} steps."
        )
    mask, _ = model.time_map(batch.mask, batch.resets, carry)
    carry, predictions = model.apply(params, carry, batch.xs, mask=batch.mask, resets=batch.resets, key=key)
    return carry, predictions, batch.ys, mask


def _check_carry(model: Layer, stateful: bool, state: TrainState, batch: Batch) -> None:
    expected = model.initial_carry(state.params, model.batch_shape(batch.xs)) if stateful else ()
    if jax.tree.structure(state.carry) != jax.tree.structure(expected):  # type: ignore[operator]
        raise ValueError(
            "stateful training continues from the state's carry, and this one is not the model's; begin with "
            "init_state(params, optimizer, carry=model.initial_carry(params, batch_shape))."
            if stateful
            else "the state has a carry, which only make_train_step(..., stateful=True) continues from; "
            "begin with init_state(params, optimizer)."
        )


def _all_finite(tree: Any) -> Array:
    return jnp.all(jnp.array([jnp.isfinite(leaf).all() for leaf in _floats(tree)], bool))


def _stays_finite(new: Any, old: Any) -> Array:
    """Whether everything that was finite still is; some optimizers start with infinities."""
    pairs = zip(_floats(new), _floats(old), strict=True)
    return jnp.all(jnp.array([(jnp.isfinite(a) | ~jnp.isfinite(b)).all() for a, b in pairs], bool))


def _floats(tree: Any) -> list[Array]:
    return [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]

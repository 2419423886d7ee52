# SPDX-License-Identifier: Apache-2.0
"""What `check_cell` lets pass of a user's own cells, and what it names."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import pytest

import seqjax
from seqjax.testing import check_cell


class Tanh(seqjax.Cell):
    """h_t = tanh(h_{t-1} + W x_t), which the cells below change."""

    def init(self, key, in_dim):
        return {"w": jax.random.normal(key, (in_dim, 4), jnp.float32)}

    def initial_carry(self, params, batch_shape):
        return jnp.zeros((*batch_shape, 4), jnp.float32)

    def step(self, params, h, x, key=None):
        h = jnp.tanh(h + x @ params["w"])
        return h, h


@dataclass(frozen=True)
class Clock(Tanh):
    """Changes at every other step."""

    def initial_carry(self, params, batch_shape):
        return super().initial_carry(params, batch_shape), jnp.zeros(batch_shape, jnp.int32)

    def step(self, params, carry, x, key=None):
        h, count = carry
        h = jnp.where((count % 2 == 0)[..., None], jnp.tanh(h + x @ params["w"]), h)
        return (h, count + 1), h


@dataclass(frozen=True)
class Numbered(Tanh):
    """Has a whole number among its params."""

    def init(self, key, in_dim):
        return super().init(key, in_dim) | {"times": jnp.array(2)}

    def step(self, params, h, x, key=None):
        h = jnp.tanh(h * params["times"] + x @ params["w"])
        return h, h


@dataclass(frozen=True)
class Decay(Tanh):
    """Has no params."""

    def init(self, key, in_dim):
        return ()

    def initial_carry(self, params, batch_shape):
        return jnp.zeros((*batch_shape, 2), jnp.float32)

    def step(self, params, h, x, key=None):
        h = jnp.tanh(0.5 * h + x)
        return h, h


@dataclass(frozen=True)
class Half(Tanh):
    def step(self, params, h, x, key=None):
        h = jnp.tanh(h + x @ params["w"]).astype(jnp.float16)
        return h, h


@dataclass(frozen=True)
class Wrapped(Tanh):
    def step(self, params, h, x, key=None):
        h = jnp.tanh(h + x @ params["w"])
        return (h,), h


@dataclass(frozen=True)
class NoFeatures(Tanh):
    def step(self, params, h, x, key=None):
        h = jnp.tanh(h + x @ params["w"])
        return h, h.sum(-1)


@dataclass(frozen=True)
class NoBatch(Tanh):
    def initial_carry(self, params, batch_shape):
        return jnp.zeros(4, jnp.float32)


@dataclass(frozen=True)
class Unit(Tanh):
    """Divides by |W x|, whose slope at x = 0, as masked steps have it, is not finite."""

    def step(self, params, h, x, key=None):
        n = x @ params["w"]
        h = jnp.tanh(h + n / jnp.sqrt((n * n).sum(-1, keepdims=True)))
        return h, h


@dataclass(frozen=True)
class Kink(Tanh):
    """Its values are finite, its gradients are not."""

    def step(self, params, h, x, key=None):
        h = jnp.tanh(h + x @ params["w"]) + jnp.sqrt(0 * h)
        return h, h


@dataclass(frozen=True)
class Misspelt(Tanh):
    capabilities = frozenset({"affine", "ajoint"})

    def coefficients(self, params, z):
        return jnp.float32(0.5), z

    def readout(self, params, h, z):
        return h


@dataclass(frozen=True)
class Unimplemented(Tanh):
    capabilities = frozenset({"affine"})

    def readout(self, params, h, z):
        return h


@dataclass(frozen=True)
class Mixing(Tanh):
    def step(self, params, h, x, key=None):
        h = jnp.tanh(h + x @ params["w"])
        return (h - h.mean(0) if h.ndim > 1 else h,) * 2


def test_a_cell_that_computes_in_another_dtype_than_it_carries_passes():
    check_cell(seqjax.Simple(2, dtypes=seqjax.DTypes(compute="bfloat16", carry="float32")), tolerance=2**-5)


@pytest.mark.parametrize("cell", [Clock(), Numbered(), Decay()], ids=repr)
def test_a_cell_with_what_is_not_differentiable_or_without_params_passes(cell):
    check_cell(cell)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (Half(), r"step of Half\(\) changes the carry from .*float32.* to .*float16"),
        (Wrapped(), r"step of Wrapped\(\) changes the carry"),
        (NoFeatures(), r"step of NoFeatures\(\) gives \(3,\), expected \[\.\.\., H\]"),
        (NoBatch(), r"initial_carry of NoBatch\(\) has \(4,\) where the batch is \(3,\)"),
        (Unit(), r"of Unit\(\) are not finite; in masked steps x is 0"),
        (Kink(), r"gradients of Kink\(\) are not finite"),
        (Misspelt(), r"Misspelt\(\) names 'ajoint' in its capabilities; known are \['adjoint', 'affine',"),
        (Unimplemented(), r"Unimplemented\(\) names 'affine' in its capabilities, but .* implement \['coefficients'\]"),
        (Mixing(), "Not equal to tolerance"),
    ],
    ids=lambda case: repr(case) if isinstance(case, seqjax.Cell) else "",
)
def test_a_cell_that_breaks_a_law_is_refused_by_the_law(cell, message):
    with pytest.raises(AssertionError, match=message):
        check_cell(cell)


def test_a_capability_that_is_named_but_not_implemented_is_refused_as_that():
    cell = Unimplemented()
    params, carry, xs, *_ = seqjax.testing.example(cell)
    with pytest.raises(ValueError, match=r"names 'affine' in its capabilities, but does not have all of coeff"):
        seqjax.engines.Associative().run(cell, params, carry, xs)

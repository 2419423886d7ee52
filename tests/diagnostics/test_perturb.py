# SPDX-License-Identifier: Apache-2.0
"""Gradients with respect to a state, against loops in which it is perturbed by hand where it is made."""

import jax
import jax.ad_checkpoint
import jax.numpy as jnp
import numpy as np
import pytest

import seqjax
from seqjax.cells import LambdaCell, MultiHead, Zoneout
from seqjax.diagnostics import gradient_flow, trajectories
from tests.common import F64
from tests.diagnostics.by_hand import random_params

T, B, N = 4, 2, 3
XS = np.random.default_rng(0).normal(size=(T, B, N))


def objective(ys):
    """A loss of all outputs, with the last one's weight far from the others'."""
    return sum((t + 1.0) ** 2 * jnp.sum(jnp.sin(y)) for t, y in enumerate(ys))


def assert_flow(cell, params, step, carry):
    """`step(carry, x, deltas) -> carry, y` adds `deltas`, a dict like the norms, where it makes each state."""

    def loss(deltas):
        state, ys = carry, []
        for x, *moved in zip(XS, *deltas.values(), strict=True):
            state, y = step(state, x, dict(zip(deltas, moved, strict=True)))
            ys.append(y)
        return objective(ys)

    (flow,) = gradient_flow(seqjax.RNN(cell), params, XS, lambda ys, mask: objective(ys))
    start = jax.tree.leaves(cell.initial_carry(params, (B,)))
    zeros = {name: jnp.zeros((T, *leaf.shape)) for name, leaf in zip(flow.norms, start, strict=True)}
    for name, gradient in jax.jit(jax.grad(loss))(zeros).items():
        expected = np.linalg.norm(np.asarray(gradient).reshape(T, B, -1), axis=-1)
        np.testing.assert_allclose(flow.norms[name], expected, rtol=1e-10, err_msg=name)


@pytest.mark.parametrize("inner", [seqjax.GRU(2, dtypes=F64), Zoneout(seqjax.GRU(2, dtypes=F64), 0.3)], ids=repr)
def test_heads_whose_output_is_their_state(inner):
    cell = MultiHead(inner, 2)
    params = random_params(cell, N)

    def step(carry, x, deltas):
        heads = [
            inner.step(jax.tree.map(lambda a, n=n: a[n], params), carry[n], inner.project(params_of(n), x))[0].h
            + deltas["h"][:, 2 * n : 2 * n + 2]
            for n in range(2)
        ]
        return [type(carry[0])(h) for h in heads], jnp.concatenate(heads, -1)

    def params_of(n):
        return jax.tree.map(lambda a: a[n], params)

    assert_flow(cell, params, step, [inner.initial_carry(params_of(0), (B,))] * 2)


def test_heads_of_an_lstm():
    cell = MultiHead(seqjax.LSTM(2, dtypes=F64), 2)
    params = random_params(cell, N)

    def step(carry, x, deltas):
        after = []
        for n, (h, c) in enumerate(carry):
            of_head = slice(2 * n, 2 * n + 2)
            h, c = hand_lstm(jax.tree.map(lambda a, n=n: a[n], params), h, c, x, deltas["c"][:, of_head])
            after.append((h + deltas["h"][:, of_head], c))
        return after, jnp.concatenate([h for h, _ in after], -1)

    assert_flow(cell, params, step, [(np.zeros((B, 2)),) * 2] * 2)


def hand_lstm(params, h, c, x, delta):
    i, f, g, o = jnp.split(x @ params.w_in + h @ params.w_rec + params.bias, 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g) + delta
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


# -- cells of the user: the same two states, made in many ways --------------------------------


def states(h, c, x, delta_h=0.0, delta_c=0.0):
    c = jax.nn.sigmoid(h + x) * c + jnp.tanh(x - 0.5 * h) + delta_c
    return jnp.tanh(c) * jax.nn.sigmoid(x - h) + delta_h, c


def plain(carry, x):
    h, c = states(*carry, x)
    return (h, c), h


def recomputed(carry, x):
    h, c = states(*carry, x)
    return (h, c), states(*carry, x)[0]  # as one who writes the step twice would


def grouped(carry, x):
    h, c = states(*carry, x)
    return (h, c), 2 * jnp.concatenate([c, h], -1)[..., N:] - h


def labelled(carry, x):
    h, c = states(*carry, x)
    return (jax.ad_checkpoint.checkpoint_name(h, "h"), c), h


def with_branches(carry, x):
    return jax.lax.cond(x.sum() > 0, plain, lambda carry, x: (carry, carry[0]), carry, x)


def branches_by_sequence(carry, x):
    return jax.vmap(with_branches)(carry, x)


SEPARATE = {
    "plain": plain,
    "jit": jax.jit(plain),
    "checkpoint": jax.checkpoint(plain),
    "jit of checkpoint of jit": jax.jit(jax.checkpoint(jax.jit(grouped))),
    "computed twice": recomputed,
    "checkpoint_name": labelled,
    "vmap": jax.vmap(plain),
}


@pytest.mark.parametrize("name", SEPARATE)
def test_two_states_of_a_user(name):
    cell = user_cell(lambda params, carry, x: SEPARATE[name](carry, x), lambda b: (jnp.zeros((*b, N)),) * 2)

    def step(carry, x, deltas):
        h, c = states(*carry, x, deltas["0"], deltas["1"])
        return (h, c), h

    assert_flow(cell, (), step, (np.zeros((B, N)),) * 2)


@pytest.mark.parametrize("by_sequence", [False, True])
def test_states_made_in_a_branch_or_passed_on_by_one(by_sequence):
    step_fn = branches_by_sequence if by_sequence else with_branches
    cell = user_cell(lambda params, carry, x: step_fn(carry, x), lambda b: (jnp.zeros((*b, N)),) * 2)

    def step(carry, x, deltas):
        (h, c), new = carry, states(*carry, x, deltas["0"], deltas["1"])
        taken = (x.sum(-1, keepdims=True) if by_sequence else x.sum()) > 0
        if by_sequence:  # what is selected by a mask is made by the selection
            new = states(*carry, x)
            h, c = (jnp.where(taken, a, b) + deltas[k] for a, b, k in zip(new, (h, c), "01", strict=True))
        else:
            h, c = (jnp.where(taken, a, b + deltas[k]) for a, b, k in zip(new, (h, c), "01", strict=True))
        return (h, c), h

    assert_flow(cell, (), step, (np.zeros((B, N)),) * 2)


PACKED = {
    "concatenate": (lambda h, c: jnp.concatenate([h, c], -1), lambda a: jnp.split(a, 2, -1)),
    "stack": (lambda h, c: jnp.stack([h, c]).swapaxes(0, 1), lambda a: (a[:, 0], a[:, 1])),
    "reshape": (lambda h, c: jnp.concatenate([h, c], -1).reshape(B, N, 2), lambda a: split(a.reshape(B, 2 * N))),
    "reversed": (lambda h, c: jnp.hstack([h, c])[:, ::-1], lambda a: split(a[:, ::-1])),
}


def split(packed):
    return packed[:, :N], packed[:, N:]


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("of_carry", [False, True])
def test_two_states_in_one_array(name, of_carry):
    pack, unpack = PACKED[name]

    def packed_step(params, carry, x):
        h, c = states(*unpack(carry), x)
        after = pack(h, c)
        return after, unpack(after)[0] if of_carry else h

    def step(carry, x, deltas):
        delta_h, delta_c = unpack(deltas["carry"])
        h, c = states(*carry, x, delta_h, delta_c)
        return (h, c), h

    start = pack(jnp.zeros((B, N)), jnp.zeros((B, N)))
    assert_flow(user_cell(packed_step, lambda b: start), (), step, (np.zeros((B, N)),) * 2)


def test_a_state_that_is_part_of_the_output():
    def halves(params, h, x):
        both = jnp.tanh(jnp.concatenate([h, x], -1) + x.sum(-1, keepdims=True))
        return jnp.split(both, 2, -1)[0], both

    def step(h, x, deltas):
        after, both = halves((), h, x)
        return after + deltas["carry"], both + jnp.concatenate([deltas["carry"], jnp.zeros_like(x)], -1)

    assert_flow(user_cell(halves, lambda b: jnp.zeros((*b, N))), (), step, np.zeros((B, N)))


def test_a_window_of_old_states_is_made_where_they_are_put_together():
    def window(params, carry, x):
        h = jnp.tanh(carry.sum(1) + x)
        after = jnp.concatenate([carry[:, 1:], h[:, None]], 1)
        return after, (after * jnp.arange(1.0, 4.0)[:, None]).sum(1) + h

    def step(carry, x, deltas):
        delta = deltas["carry"]
        h = jnp.tanh(carry.sum(1) + x) + delta[:, -1]
        after = jnp.concatenate([carry[:, 1:] + delta[:, :-1], h[:, None]], 1)
        return after, (after * jnp.arange(1.0, 4.0)[:, None]).sum(1) + h

    assert_flow(user_cell(window, lambda b: jnp.zeros((*b, 3, N))), (), step, np.zeros((B, 3, N)))


@jax.custom_vjp
def own_gradient(h, x):
    after = jnp.tanh(h + x)
    return after, after


own_gradient.defvjp(
    lambda h, x: ((own_gradient(h, x)), (h, x)),
    lambda seen, d: (0.5 * (d[0] + d[1]) * (1 - jnp.tanh(sum(seen)) ** 2),) * 2,
)


def test_a_gradient_of_the_users_own_is_kept():
    def step(h, x, deltas):
        after, y = own_gradient(h, x)
        return after + deltas["carry"], y + deltas["carry"]

    cell = user_cell(lambda params, h, x: own_gradient(h, x), lambda b: jnp.zeros((*b, N)))
    assert_flow(cell, (), step, np.zeros((B, N)))


@jax.custom_vjp
def fused(carry, x):
    return plain(carry, x)


fused.defvjp(lambda carry, x: (plain(carry, x), (carry, x)), lambda seen, d: jax.vjp(plain, *seen)[1](d))


def micro_steps(carry, x):
    carry, _ = jax.lax.scan(lambda carry, _: (states(*carry, x), None), carry, length=2)
    return carry, carry[0]


def written(carry, x):
    h, c = states(*carry, x)
    return (jnp.zeros_like(h).at[:].set(h), c), h


def made_before_the_branch(carry, x):
    h, c = states(*carry, x)
    return jax.lax.cond(x.sum() > 0, lambda h, c: ((h, c), h + c), lambda h, c: ((c, h), h * c), h, c)


UNDECIDED = {
    "one 'custom_vjp_call'": fused,
    "one 'scan'": micro_steps,
    "'scatter'": written,
    "a branch of 'cond'": made_before_the_branch,
}


@pytest.mark.parametrize("reason", UNDECIDED)
def test_a_step_that_leaves_open_what_its_output_is_made_of_is_refused_but_looked_at(reason):
    cell = user_cell(lambda params, carry, x: UNDECIDED[reason](carry, x), lambda b: (jnp.zeros((*b, N)),) * 2)
    with pytest.raises(ValueError, match=f"gradient_flow: the step of LambdaCell.*{reason}.*from the new carry"):
        gradient_flow(seqjax.RNN(cell), (), XS, lambda ys, mask: ys.sum())
    (seen,) = trajectories(seqjax.RNN(cell), (), XS)
    np.testing.assert_array_equal(seen.carries[0][0], np.zeros((B, N)))


def user_cell(step, start):
    return LambdaCell(lambda key, in_dim: (), step, lambda params, batch_shape: start(batch_shape))

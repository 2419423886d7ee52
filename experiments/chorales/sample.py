# SPDX-License-Identifier: Apache-2.0
"""Lets a trained model play: as sound, and as a picture."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import matplotlib.style
import numpy as np
from matplotlib.figure import Figure

from experiments.chorales import scores
from experiments.chorales.data import KEYS, Corpus
from experiments.study.style import PALETTE, STYLE
from seqjax.base import Array, Layer, Params

OPENING = 4
"""Quarter notes of a piece that nobody trained on, by which the model is set going."""


def play(model: Layer, params: Params, opening: np.ndarray, steps: int, seed: int) -> np.ndarray:
    """The opening and what the model makes of it: at each step every note sounds with the probability it is given.

    Args:
      model: one that streams.
      params: its params.
      opening: `[T0, KEYS]` bool.
      steps: to be played after it.
      seed: of the draws.

    Returns:
      `[T0 + steps, KEYS]` bool.
    """
    played = _play(model, steps, params, jnp.asarray(opening, jnp.float32), jax.random.key(seed))
    return np.concatenate([opening, np.asarray(played)])


@functools.partial(jax.jit, static_argnums=(0, 1))
def _play(model: Layer, steps: int, params: Params, opening: Array, key: Array) -> Array:
    carry, logits = model.apply(params, model.initial_carry(params, ()), opening)

    def step(state: tuple, key: Array) -> tuple[tuple, Array]:
        carry, logits = state
        keys = jax.random.uniform(key, (KEYS,), jnp.float32) < jax.nn.sigmoid(logits)
        carry, ys = model.apply(params, carry, keys.astype(jnp.float32)[None])
        return (carry, ys[0]), keys

    return jax.lax.scan(step, (carry, logits[-1]), jax.random.split(key, steps))[1]


def write(
    stem: pathlib.Path, corpus: Corpus, title: str, model: Layer, params: Params, *, steps: int, seed: int
) -> None:
    """Plays on from the opening of a test piece, which the seed chooses, and writes `stem.mid` and `stem.png`.

    Raises:
      ValueError: no note sounds.
      OSError: a file cannot be written.
    """
    opening = corpus.test[seed % len(corpus.test)][: OPENING * corpus.steps_per_quarter]
    keys = play(model, params, opening, steps, seed)
    if not keys.any():
        raise ValueError(f"{title.split(',')[0]} {steps} steps of silence: there is nothing to draw and to write.")
    picture(stem.with_suffix(".png"), keys, len(opening), corpus, title)
    scores.write_midi(stem.with_suffix(".mid"), keys, corpus.steps_per_quarter)


def picture(path: pathlib.Path, keys: np.ndarray, given: int, corpus: Corpus, title: str) -> None:
    """The piano roll: what was given in grey, what was played in colour."""
    used = np.flatnonzero(keys.any(0))
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(10, 3.2), layout="constrained")
        axis = figure.subplots()
        for onset, length, pitch in scores.notes(keys, corpus.steps_per_quarter):
            colour = "0.55" if onset * corpus.steps_per_quarter < given else PALETTE[0]
            axis.broken_barh([(onset, length)], (pitch - 0.4, 0.8), color=colour, lw=0)
        low, high = scores.LOWEST + used[0], scores.LOWEST + used[-1]
        octaves = [pitch for pitch in range(0, 128, 12) if low - 6 <= pitch <= high + 6]
        axis.set_yticks(octaves, [f"C{pitch // 12 - 1}" for pitch in octaves])
        axis.set(xlabel="quarter notes", xlim=(0, len(keys) / corpus.steps_per_quarter), ylim=(low - 2, high + 2))
        axis.set_title(title, loc="left")
        figure.savefig(path)

# SPDX-License-Identifier: Apache-2.0
"""Random pieces of recordings, as they are or as another person might have made them."""

import dataclasses
import math

import numpy as np

from experiments.watch.data import CHANNELS, Recordings, Scaler

MIN_TEMPO = 0.2


@dataclasses.dataclass(frozen=True)
class Variation:
    """How a piece differs from what was recorded.

    Args:
      tempo: the logarithm of the speed is drawn from U(-tempo, tempo). Played faster, an arm turns
        faster: angular velocities are multiplied by the speed. (Accelerations stay: most of them is gravity.)
      tilt: standard deviation, in radians, of the angle by which the watch is turned on its wrist, about an
        axis drawn uniformly: acceleration and angular velocity turn together.
      gain: the logarithm of the strength is drawn from U(-gain, gain).

    Raises:
      ValueError: a number below zero, or a tempo beyond 5 times.
    """

    tempo: float = 0.0
    tilt: float = 0.0
    gain: float = 0.0

    def __post_init__(self):
        if min(self.tempo, self.tilt, self.gain) < 0 or self.tempo > -math.log(MIN_TEMPO):
            raise ValueError(f"Variations are numbers from 0 on, and tempo at most {-math.log(MIN_TEMPO):.2f}: {self}.")


AS_RECORDED = Variation()


def crops(
    recordings: Recordings, scaler: Scaler, *, steps: int, count: int, variation: Variation, seed: int, step: int
) -> tuple[np.ndarray, np.ndarray]:
    """The pieces of one training step, a pure function of `(seed, step)`.

    Each is drawn from a recording drawn uniformly, at a place drawn uniformly.

    Args:
      recordings: that pieces are cut out of.
      scaler: that of the people learnt from.
      steps: of a piece.
      count: pieces, B.
      variation: of what was recorded.
      seed, step: of the draw.

    Returns:
      xs `[steps, B, 6]` float32, scaled, and labels `[1, B]` int32: one for the whole piece.
    """
    draw = np.random.default_rng((seed, step))
    rows = draw.integers(len(recordings.signals), size=count)
    places = draw.random(count)
    speeds = np.exp(draw.uniform(-variation.tempo, variation.tempo, count))
    gains = np.exp(draw.uniform(-variation.gain, variation.gain, count))
    turns = rotations(draw.normal(size=(count, 3)), variation.tilt * draw.normal(size=count))
    xs = np.empty((steps, count, len(CHANNELS)), np.float32)
    for index, row in enumerate(rows):
        piece = play(recordings.signals[row], steps, places[index], speeds[index])
        if variation.tilt:
            piece = turn(piece, turns[index])
        xs[:, index] = scaler.scale(piece * np.float32(gains[index]))
    return xs, recordings.labels[rows][None]


def play(signal: np.ndarray, steps: int, place: float, speed: float) -> np.ndarray:
    """`steps` steps of `signal [T, 6]` at a speed, from a place between the first possible (0) and the last (1).

    Between steps it is interpolated linearly. A recording that is too short for the speed is played as
    fast as it lasts.
    """
    speed = min(speed, (len(signal) - 1) / (steps - 1))
    start = place * (len(signal) - 1 - speed * (steps - 1))
    if speed == 1:
        return signal[round(start) : round(start) + steps]
    times = start + speed * np.arange(steps)
    before = np.minimum(times.astype(int), len(signal) - 2)
    weight = (times - before).astype(np.float32)[:, None]
    played = (1 - weight) * signal[before] + weight * signal[before + 1]
    played[:, 3:] *= np.float32(speed)
    return played


def rotations(axes: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Rotation matrices `[N, 3, 3]` about `axes [N, 3]`, of any length, by `angles [N]`.

    R = I + sin θ K + (1 - cos θ) K², K the cross product with the axis: Rodrigues' formula.

    >>> rotations(np.array([[0.0, 0.0, 2.0]]), np.array([np.pi / 2])).round(6).tolist()
    [[[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]]
    """
    x, y, z = (axes / np.linalg.norm(axes, axis=1, keepdims=True)).T
    o = np.zeros_like(x)
    cross = np.stack([o, -z, y, z, o, -x, -y, x, o], axis=1).reshape(-1, 3, 3)
    sine, cosine = (part[:, None, None] for part in (np.sin(angles), np.cos(angles)))
    return np.eye(3) + sine * cross + (1 - cosine) * (cross @ cross)


def turn(signal: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """`signal [T, 6]` as a watch turned by `rotation [3, 3]` would have seen it."""
    return (signal.reshape(-1, 2, 3) @ rotation.T.astype(signal.dtype)).reshape(signal.shape)

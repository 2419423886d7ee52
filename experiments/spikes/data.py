# SPDX-License-Identifier: Apache-2.0
"""Two recordings of one auditory neuron of a grasshopper, ten seconds each, as the package `nitime` ships them."""

import functools
import hashlib
import importlib.util
import io
import pathlib
from typing import NamedTuple, Self

import numpy as np

MICROSECONDS = 50
"""Of a bin: the stimulus has 20,000 values a second."""
RESOLUTION = 2
"""Bins in which a spike is told: all spike times are multiples of 100 microseconds."""
INTENSITIES = (76.4286, 71.2)
"""The loudest moment of each stimulus in dB SPL, from the spike files' headers, as in nitime's example."""
SHA256 = {
    "grasshopper_stimulus1.txt": "4b47a4cbca8c5f694f87dd510db608a868dffbaba96845199c8afa545a4c37fa",
    "grasshopper_stimulus2.txt": "69f257a8e7a5019897111b07f9cd317b136357d256e99682d40c09d5add18e6a",
    "grasshopper_spike_times1.txt": "840014ad9a8f591d02ab108bcbd46715badb3459e0ef7eac95fdd661ff134e3d",
    "grasshopper_spike_times2.txt": "389e5dccb709fbe0552589ff2e0b64e15d46665e4d2d4172071f2175c8641541",
}


class Recordings(NamedTuple):
    """Recordings side by side, a bin of 50 microseconds a step."""

    levels: np.ndarray  # [N, 2] float32, of the stimulus' envelope, in dB SPL
    spikes: np.ndarray  # [N, 2] float32, 0 or 1

    def first(self, bins: int | None) -> Self:
        """Their first so many bins; None is all."""
        return type(self)(self.levels[:bins], self.spikes[:bins])


@functools.lru_cache(maxsize=1)
def load() -> Recordings:
    """Reads both recordings: 200,000 bins, 929 and 868 spikes.

    Raises:
      ValueError: the package is not there, or a file is not that of version 0.12.1.

    Source: A. Rokem, S. Watzl, T. Gollisch, M. Stemmler, A. V. M. Herz and I. Samengo, Spike-timing precision
    underlies the coding efficiency of auditory receptor neurons, J. Neurophysiology 95 (2006), 2541-2552.
    """
    found = importlib.util.find_spec("nitime")
    if found is None or found.origin is None:
        raise ValueError(
            "The recordings are in the package nitime, which is not installed; "
            "install it with: pip install 'seqjax[spikes]'."
        )
    folder = pathlib.Path(found.origin).parent / "data"
    levels, spikes = [], []
    for number, intensity in enumerate(INTENSITIES, 1):
        volts = read(folder / f"grasshopper_stimulus{number}.txt")[:, 1]
        times = read(folder / f"grasshopper_spike_times{number}.txt")
        levels.append(decibels(volts, intensity))
        spikes.append(binned(times, len(volts)))
    recordings = Recordings(np.stack(levels, axis=1), np.stack(spikes, axis=1))
    for array in recordings:
        array.flags.writeable = False
    return recordings


def read(path: pathlib.Path) -> np.ndarray:
    """The numbers in a file, after checking that it is the known one.

    Raises:
      ValueError: its sha256 is another one.
    """
    raw = path.read_bytes()
    if hashlib.sha256(raw).hexdigest() != SHA256.get(path.name):
        raise ValueError(f"{path} is not the file of nitime 0.12.1 (its sha256 differs); install that version.")
    return np.loadtxt(io.BytesIO(raw))


def decibels(volts: np.ndarray, loudest: float) -> np.ndarray:
    """The level of an amplitude, float32, whose maximum is at `loudest`: the conversion of nitime's own example.

    >>> decibels(np.array([0.1, 1.0]), 70.0).tolist()
    [50.0, 70.0]
    """
    levels = 20 * np.log10(volts)
    return (levels - levels.max() + loudest).astype(np.float32)


def binned(times: np.ndarray, bins: int) -> np.ndarray:
    """Spike times in microseconds as `[bins]` float32, 1 where there is one.

    Raises:
      ValueError: two in a bin.

    >>> binned(np.array([0.0, 100.0, 199.0]), 5).tolist()
    [1.0, 0.0, 1.0, 1.0, 0.0]
    """
    counts = np.bincount((times // MICROSECONDS).astype(np.int64), minlength=bins)
    if (counts > 1).any():
        raise ValueError("two spikes are in one bin: the refractory period of a neuron is longer than that.")
    return counts.astype(np.float32)

# SPDX-License-Identifier: Apache-2.0
"""A process killed at any moment loses nothing that was finished."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
STEPS = 60

# A checkpoint after every step, so that most of the time is spent in writing one.
PROGRAM = f"""
import sys
import numpy as np, optax, seqjax
from seqjax.training import Batch, clipped, fit, mean_squared_error

def make_batch(seed, t):
    xs = np.random.default_rng((seed, t)).normal(size=(4, 3, 2)).astype(np.float32)
    return Batch(xs, xs.sum(-1, keepdims=True))

model = seqjax.Serial(seqjax.Dropout(0.2), seqjax.Dense(1))
fit(model, make_batch, steps={STEPS}, loss=mean_squared_error, optimizer=clipped(optax.adam(0.01), norm=0.1),
    seed=3, run_dir=sys.argv[1], resume=True, checkpoint_every=1, keep=2)
"""


def start(run_dir):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", PROGRAM, run_dir], env=environment, stderr=subprocess.PIPE)


def finish(process):
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()


def checkpoints(run_dir):
    return sorted(int(path.name) for path in run_dir.glob("checkpoints/*") if path.name.isdecimal())


def arrays(run_dir):
    from seqjax.training import storage

    path = run_dir / "checkpoints" / str(STEPS)
    storage.check(path)
    return {name: array.tobytes() for name, array in storage.read(path).items()}


def test_a_run_killed_again_and_again_ends_bit_for_bit_as_an_uninterrupted_one(tmp_path):
    moment = random.Random(0)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    uninterrupted = start(whole)
    kills = []
    for _ in range(3):
        target = max(checkpoints(killed), default=-1) + moment.randint(2, 8)
        process = start(killed)
        while max(checkpoints(killed), default=-1) < target:
            assert process.poll() is None, process.stderr.read().decode()
            time.sleep(0.005)
        time.sleep(moment.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills.append(max(checkpoints(killed)))
    finish(start(killed))
    finish(uninterrupted)
    assert kills == sorted(set(kills))  # each part went on from where the one before was killed
    assert kills[-1] < STEPS
    assert (killed / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert arrays(killed) == arrays(whole)

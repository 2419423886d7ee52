# SPDX-License-Identifier: Apache-2.0
"""The kernels of whole recurrences: what fits, and that they lower for a GPU. Numbers: tests/engines/test_fused."""

import functools
import sys

import jax
import pytest
from jax.sharding import PartitionSpec

from seqjax.kernels import equations, operands
from seqjax.kernels.triton import launch, recurrence
from tests.kernels.cuda import kernels_launched, shapes

KINDS = [equations.SIMPLE, equations.LSTM, equations.GRU_AFTER, equations.GRU_BEFORE]


def test_weights_stay_or_are_streamed_by_what_a_processor_keeps():
    """G gates of H^2 numbers of 4 or 2 bytes against 192 KiB, one gate against 128; H = 100 takes the room of 128."""
    assert recurrence.weight_bytes(4, 100, "float32") == 4 * 128 * 128 * 4
    assert recurrence.resident(4, 128, "bfloat16")
    assert recurrence.resident(3, 128, "float32")
    assert not recurrence.resident(4, 100, "float32")
    assert recurrence.fits(4, 100, "float32")
    assert recurrence.fits(4, 256, "bfloat16")
    assert not recurrence.fits(4, 129, "float32")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_kernels_lower_for_cuda(kind, dtype):
    """Without a GPU: to the code that its compiler takes, one launch each way, T, B and H no powers of two."""
    z, given = shapes(kind, dtype, T=13, B=5, H=20)
    forward = functools.partial(recurrence.forward, kind, equations.Functions())
    left = jax.eval_shape(lambda z, given: forward(z, given), z, given)

    def both(z, given, left, d_hs):
        reverse = recurrence.reverse(kind, equations.Functions(), given, left, d_hs, given.states)
        return forward(z, given, keep=False), reverse

    assert kernels_launched(both, z, given, left, left.sequences[0]) == 2


def test_the_kernels_lower_inside_shard_map():
    kind = equations.GRU_BEFORE
    z, given = shapes(kind, "float32", T=13, B=8, H=20)
    sequences, batch = PartitionSpec(None, "device"), PartitionSpec("device")

    def run(z, given):
        given = given._replace(w_rec=jax.lax.pcast(given.w_rec, "device", to="varying"))
        return recurrence.forward(kind, equations.Functions(), z, given)

    def split(z, given):
        specs = sequences, operands.Given(PartitionSpec(), None, batch, batch, sequences)
        return jax.shard_map(run, in_specs=specs, out_specs=batch)(z, given)

    assert kernels_launched(split, z, given) == 1


def test_the_default_device_decides_on_a_machine_with_a_gpu_and_a_cpu(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert launch.missing() is None
    with jax.default_device("cpu"):
        assert launch.missing() == "an NVIDIA GPU, and the device here is 'cpu'"


def test_a_jax_without_the_backend_is_known_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax.experimental.pallas.triton", None)
    monkeypatch.delattr("jax.experimental.pallas.triton", raising=False)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert str(launch.missing()).startswith("a jax whose Pallas has a Triton backend")

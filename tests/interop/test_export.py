# SPDX-License-Identifier: Apache-2.0
"""Exported models: the same numbers in a process that cannot import seqjax."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import seqjax
from seqjax import engines
from seqjax.interop.export import export_model, export_stream, least_steps, length_agnostic

pytest.importorskip("flatbuffers")

SHAPES = ((4, 1), (17, 3), (50, 2))
PIECES = (0, 4, 10, 12)

READER = """
import sys
sys.modules["seqjax"] = None  # from here on `import seqjax` is an ImportError
try:
    import seqjax
except ImportError:
    pass
else:
    raise SystemExit("this process was to have no seqjax")
import jax, numpy as np
from jax import export

folder, pieces = sys.argv[1], [int(cut) for cut in sys.argv[2].split(",")]

def load(name):
    with open(f"{folder}/{name}.jax", "rb") as file:
        return export.deserialize(file.read()).call

def stream(name, xs, cuts):
    carry, ys, step = load(f"{name}_start")(xs[cuts[0]:cuts[1]]), [], jax.jit(load(f"{name}_step"))
    for begin, end in zip(cuts, cuts[1:]):
        carry, y = step(carry, xs[begin:end])
        ys.append(y)
    return {f"{name}.ys": np.concatenate(ys), **{f"{name}.{key}": leaf for key, leaf in carry.items()}}

data, out = np.load(f"{folder}/inputs.npz"), {}
for i in range(3):
    out[f"whole{i}"] = load("whole")(data[f"xs{i}"])
    out[f"masked{i}"] = load("masked")(data[f"padded{i}"], data[f"mask{i}"])
steps = list(range(len(data["stream"]) + 1))
out |= stream("single", data["stream"], steps) | stream("strided", data["stream"], pieces)
np.savez(f"{folder}/outputs.npz", **out)
"""


def mission_model(padding):
    """The mission's convolution in front of two GRUs."""
    return seqjax.Serial(
        seqjax.Conv1D(5, width=4, stride=2, padding=padding),
        seqjax.RNN(seqjax.GRU(5)),
        seqjax.RNN(seqjax.GRU(5)),
        seqjax.Dense(3),
    )


MODELS = {
    "whole": (mission_model("valid"), 1),
    "single": (seqjax.Serial(seqjax.RNN(seqjax.LSTM(4)), seqjax.RNN(seqjax.MinGRU(4))), 2),
    "strided": (mission_model("causal"), 2),
}


def drawn(model, *like):
    """Random params of the model, for inputs of the shape `like`."""
    xs, random = jax.ShapeDtypeStruct(like, jnp.float32), np.random.default_rng(0)
    shapes = jax.eval_shape(lambda key: model.init(key, xs), jax.random.key(0))
    return jax.tree.map(lambda a: jnp.asarray((random.normal(size=a.shape) * 0.5).astype(a.dtype)), shapes)


def apply(model, params, xs, mask=None):
    """Carry and outputs, in this process."""

    def run(params, xs, mask):
        return model.apply(params, model.initial_carry(params, xs.shape[1:-1]), xs, mask=mask)

    return jax.jit(run)(params, xs, mask)


@pytest.fixture(scope="module")
def exchange(tmp_path_factory):
    """Params and inputs handed to a process without seqjax, and the outputs that came back."""
    folder, random = tmp_path_factory.mktemp("export"), np.random.default_rng(0)
    params = {name: drawn(model, 50, 2, features) for name, (model, features) in MODELS.items()}
    inputs = {"stream": random.normal(size=(PIECES[-1], 2, 2)).astype("float32")}
    for i, (T, B) in enumerate(SHAPES):
        xs = random.normal(size=(T, B, 1)).astype("float32")
        mask = np.arange(T)[:, None] < random.integers(0, T + 1, B)
        inputs |= {f"xs{i}": xs, f"mask{i}": mask, f"padded{i}": np.where(mask[..., None], xs, np.float32(np.nan))}
    np.savez(folder / "inputs.npz", **inputs)
    whole = MODELS["whole"][0]
    artifacts = {
        "whole": export_model(whole, params["whole"], "t, b, 1"),
        "masked": export_model(whole, params["whole"], "t, b, 1", masked=True),
    }
    for name, shape in (("single", "1, b, 2"), ("strided", "2*k, b, 2")):
        stream = export_stream(MODELS[name][0], params[name], shape)
        artifacts |= {f"{name}_start": stream.start, f"{name}_step": stream.step}
    for name, artifact in artifacts.items():
        (folder / f"{name}.jax").write_bytes(artifact)
    environment = {**os.environ, "PYTHONPATH": "", "JAX_PLATFORMS": "cpu"}
    arguments = [sys.executable, "-c", READER, str(folder), ",".join(map(str, PIECES))]
    subprocess.run(arguments, check=True, cwd=folder, env=environment)
    return params, inputs, np.load(folder / "outputs.npz")


@pytest.mark.parametrize("i", range(len(SHAPES)))
def test_one_artifact_gives_the_numbers_of_apply_for_every_length_and_batch(exchange, i):
    params, inputs, outputs = exchange
    _, ys = apply(MODELS["whole"][0], params["whole"], inputs[f"xs{i}"])
    assert ys.shape == ((SHAPES[i][0] - 4) // 2 + 1, SHAPES[i][1], 3)
    np.testing.assert_allclose(outputs[f"whole{i}"], ys, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("i", range(len(SHAPES)))
def test_a_masked_artifact_gives_the_numbers_of_apply_with_nan_in_padding(exchange, i):
    params, inputs, outputs = exchange
    _, ys = apply(MODELS["whole"][0], params["whole"], inputs[f"padded{i}"], inputs[f"mask{i}"])
    assert np.isfinite(outputs[f"masked{i}"]).all()
    np.testing.assert_allclose(outputs[f"masked{i}"], ys, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["single", "strided"])
def test_a_stream_of_pieces_equals_the_whole(exchange, name):
    params, inputs, outputs = exchange
    carry, ys = apply(MODELS[name][0], params[name], inputs["stream"])
    np.testing.assert_allclose(outputs[f"{name}.ys"], ys, rtol=1e-5, atol=1e-6)
    for path, leaf in jax.tree_util.tree_leaves_with_path(carry):
        key = f"{name}.{jax.tree_util.keystr(path, simple=True, separator='.')}"
        np.testing.assert_allclose(outputs[key], leaf, rtol=1e-5, atol=1e-6)


def test_the_carry_of_a_stream_is_a_dict_named_by_layer_and_leaf(exchange):
    names = {name for name in exchange[2].files if name.startswith("strided.")}
    assert names == {"strided.ys", "strided.0.window", "strided.0.pending", "strided.1.h", "strided.2.h"}


def test_every_engine_is_exported_as_the_loop():
    layers = (
        seqjax.RNN(seqjax.GRU(4), engines.Checkpointed(3)),
        seqjax.RNN(seqjax.MinGRU(4), engines.Associative()),
        seqjax.Bidirectional(seqjax.RNN(seqjax.Simple(4), engines.Truncated(2))),
        seqjax.Residual(seqjax.RNN(seqjax.GRU(8), engines.Relaxed(3))),
    )
    model = seqjax.BatchMajor(seqjax.Serial(*layers))
    exported = length_agnostic(model)
    assert repr(exported).count("engine=Scan(adjoint=False)") == 4
    assert "Checkpointed" not in repr(exported)
    params = drawn(model, 2, 9, 3)
    xs = np.random.default_rng(0).normal(size=(2, 9, 3)).astype("float32")
    artifact = jax.export.deserialize(export_model(model, params, "b, t, 3", constraints=["t <= 100"]))
    _, expected = jax.jit(lambda xs: model.apply(params, model.initial_carry(params, (2,)), xs))(xs)
    np.testing.assert_allclose(artifact.call(xs), expected, rtol=1e-5, atol=1e-6)


def test_a_wavefront_is_exported_as_its_serial_model():
    mesh = jax.make_mesh((1,), ("layer",))
    stack = seqjax.layers.Wavefront(seqjax.GRU(4), 2, mesh, "layer")
    assert length_agnostic(stack) == seqjax.Serial(*[seqjax.RNN(seqjax.GRU(4), engines.Scan(adjoint=False))] * 2)


def test_resets_reach_the_exported_model():
    model = seqjax.RNN(seqjax.GRU(3))
    params = drawn(model, 50, 2, 2)
    xs = np.random.default_rng(0).normal(size=(6, 2)).astype("float32")
    resets = np.array([False, False, False, True, False, False])
    artifact = jax.export.deserialize(export_model(model, params, "t, 2", resets=True))
    ys = artifact.call(xs, resets)
    np.testing.assert_allclose(ys[3:], artifact.call(xs[3:], np.zeros(3, bool)), rtol=1e-6)
    assert not np.allclose(ys[3:], artifact.call(xs, np.zeros(6, bool))[3:])


def test_resets_reach_a_strided_convolution_of_any_length():
    model = seqjax.Serial(seqjax.Conv1D(4, width=3, stride=2, padding="causal"), seqjax.RNN(seqjax.GRU(4)))
    params = drawn(model, 8, 2, 3)
    xs = np.random.default_rng(0).normal(size=(8, 2, 3)).astype("float32")
    resets = np.zeros((8, 2), bool)
    resets[3, 0] = resets[6, 1] = True
    _, ys = model.apply(params, model.initial_carry(params, (2,)), xs, resets=jnp.asarray(resets))
    artifact = jax.export.deserialize(export_model(model, params, "2*t, b, 3", resets=True))
    np.testing.assert_allclose(artifact.call(xs, resets), ys, rtol=1e-5, atol=1e-6)
    start, step = map(jax.export.deserialize, export_stream(model, params, "2*t, b, 3", resets=True))
    carry, first = step.call(start.call(xs), xs[:4], resets[:4])
    _, rest = step.call(carry, xs[4:], resets[4:])
    np.testing.assert_allclose(np.concatenate([first, rest]), ys, rtol=1e-5, atol=1e-6)


def test_one_artifact_is_compiled_for_several_platforms():
    model = seqjax.RNN(seqjax.Simple(3))
    artifact = jax.export.deserialize(export_model(model, drawn(model, 50, 2, 2), "t, b, 2", platforms=("cpu", "cuda")))
    assert artifact.platforms == ("cpu", "cuda")
    assert artifact.call(jnp.ones((4, 2, 2), jnp.float32)).shape == (4, 2, 3)
    assert "stablehlo.while" in artifact.mlir_module()


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_least_length_is_that_which_stacked_convolutions_need(steps):
    convolution = seqjax.Conv1D(2, width=3, stride=2, padding="valid", dilation=2)
    model = seqjax.Serial(convolution, seqjax.Conv1D(2, width=2, padding="causal"), convolution)
    least = least_steps(model, steps)

    def outputs(T):
        shapes = [jax.ShapeDtypeStruct((steps, 1), jnp.float32) for steps in (99, T)]
        params = jax.eval_shape(lambda key: model.init(key, shapes[0]), jax.random.key(0))
        carry = jax.eval_shape(lambda params: model.initial_carry(params, ()), params)
        return jax.eval_shape(model.apply, params, carry, shapes[1])[1].shape[0]

    assert outputs(least) == steps
    with pytest.raises(ValueError, match="needs at least") if steps == 1 else pytest.raises(AssertionError):
        assert outputs(least - 1) == steps


def test_both_directions_need_the_steps_of_the_longer_one():
    valid = seqjax.Serial(seqjax.Conv1D(2, width=4, padding="valid"), seqjax.RNN(seqjax.GRU(2)), seqjax.Last())
    model = seqjax.Bidirectional(seqjax.Serial(seqjax.RNN(seqjax.GRU(2)), seqjax.Last()), valid)
    assert least_steps(model) == 4
    params = drawn(model, 9, 2, 1)
    xs = jnp.asarray(np.random.default_rng(0).normal(size=(6, 2, 1)), jnp.float32)
    artifact = jax.export.deserialize(export_model(model, params, "t, b, 1"))
    np.testing.assert_allclose(
        artifact.call(xs), model.apply(params, model.initial_carry(params, (2,)), xs)[1], atol=1e-5
    )


def test_a_sequence_shorter_than_the_convolution_is_refused_by_the_artifact():
    model = mission_model("valid")
    artifact = jax.export.deserialize(export_model(model, drawn(model, 50, 2, 1), "t, b, 1"))
    with pytest.raises(ValueError, match="shapes"):
        artifact.call(jnp.ones((3, 2, 1), jnp.float32))


def test_what_cannot_stream_is_refused_by_name():
    model = seqjax.Bidirectional(seqjax.RNN(seqjax.GRU(3)))
    with pytest.raises(ValueError, match=r"Bidirectional.*does not stream"):
        export_stream(model, None, "k, b, 3")
    with pytest.raises(ValueError, match=r"multiples of the model's stride 2.*'2\*k'"):
        export_stream(mission_model("causal"), None, "k, b, 3")
    with pytest.raises(ValueError, match="is a string such as"):
        export_model(model, None, (50, 2, 3))
    with pytest.raises(ValueError, match=r"is a string such as 't, b, 3', got float32\[50, 2, 3\]"):
        export_model(model, None, jnp.ones((50, 2, 3), jnp.float32))


@pytest.mark.parametrize("layer", [seqjax.RNN(seqjax.GRU(3)), seqjax.Dense(3)])
def test_a_shape_with_too_few_axes_is_refused_by_name(layer):
    params, batch_major = drawn(layer, 5, 2, 3), seqjax.BatchMajor(layer)
    for model, shape in ((layer, ""), (layer, "t"), (batch_major, "t"), (batch_major, "b, t")):
        with pytest.raises(ValueError, match=r"\[B?,? ?T, ..., D\].*got"):
            export_model(model, params, shape)

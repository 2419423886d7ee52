# SPDX-License-Identifier: Apache-2.0
"""`.keras` files: read as Keras wrote them, without Keras; hostile and damaged ones refused, cheaply."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import copy
import io
import json
import pathlib
import subprocess
import sys
import tracemalloc
import zipfile

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import seqjax
from seqjax.interop.keras import from_keras, load_keras

keras = pytest.importorskip("keras")
h5py = pytest.importorskip("h5py")
L = keras.layers


def keras_model():
    return keras.Sequential(
        [
            keras.Input((None, 2)),
            L.Conv1D(3, 2, padding="causal"),
            L.Bidirectional(L.LSTM(2, return_sequences=True)),
            L.LSTM(3, return_sequences=True),
            L.TimeDistributed(L.Dense(2)),
            L.RNN([L.SimpleRNNCell(2), L.GRUCell(3)], return_sequences=True),
            keras.Sequential([L.LayerNormalization(), L.Dense(4)]),
            L.BatchNormalization(),
            L.GRU(2),
            L.Dense(1, activation="softplus"),
        ]
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A file and the model in it, with random weights."""
    path, random = tmp_path_factory.mktemp("keras") / "model.keras", np.random.default_rng(0)
    with pytest.MonkeyPatch.context() as patch:
        for cls in (keras.initializers.GlorotUniform, keras.initializers.Orthogonal):  # slow to compile
            patch.setattr(cls, "__call__", lambda self, shape, dtype=None, **kwargs: np.zeros(shape, dtype))
        model = keras_model()
    model.set_weights([random.normal(size=w.shape).astype(w.dtype) for w in model.get_weights()])
    model.compile("sgd", "mse")
    model.save(path)
    return path, from_keras(model)


def members(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewritten(tmp_path, contents, compression=zipfile.ZIP_STORED):
    path = tmp_path / "changed.keras"
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return path


def with_config(tmp_path, saved, change):
    """The file after `change(layers)` of its configuration."""
    contents = members(saved[0])
    config = json.loads(contents["config.json"])
    change(config["config"]["layers"])
    return rewritten(tmp_path, contents | {"config.json": json.dumps(config)})


def with_weights(tmp_path, saved, change):
    """The file after `change(h5 file)` of its weights."""
    contents = members(saved[0])
    store = io.BytesIO(contents["model.weights.h5"])
    with h5py.File(store, "r+") as file:
        change(file)
    return rewritten(tmp_path, contents | {"model.weights.h5": store.getvalue()})


# -- files as Keras writes them ----------------------------------------------------------------


def test_a_file_holds_the_model_that_was_saved(saved):
    path, (expected_model, expected_params) = saved
    model, params = load_keras(path)
    assert model == expected_model
    assert jax.tree.structure(params) == jax.tree.structure(expected_params)
    for a, e in zip(jax.tree.leaves(params), jax.tree.leaves(expected_params), strict=True):
        assert a.dtype == e.dtype
        assert np.array_equal(a, e)


def test_weights_in_the_byte_order_of_another_machine_are_read(saved, tmp_path):
    def change(file):
        kernel = file["layers/conv1d/vars/0"][:]
        del file["layers/conv1d/vars/0"]
        file["layers/conv1d/vars/0"] = kernel.astype(">f4")

    _, params = load_keras(with_weights(tmp_path, saved, change))
    np.testing.assert_array_equal(params[0].kernel, saved[1][1][0].kernel)


@pytest.mark.parametrize("dtype", ["bfloat16", "float64", "mixed_float16"])
def test_every_dtype_policy_is_read_as_it_was_stored(tmp_path, dtype):
    model = keras.Sequential([keras.Input((None, 2)), L.Dense(3, dtype=dtype), L.Conv1D(2, 2, dtype=dtype)])
    model.save(tmp_path / "model.keras")
    read, params = load_keras(tmp_path / "model.keras")
    expected, expected_params = from_keras(model)
    assert read == expected
    for a, e in zip(jax.tree.leaves(params), jax.tree.leaves(expected_params), strict=True):
        assert a.dtype == e.dtype == ("float32" if dtype.startswith("mixed") else dtype)
        assert np.array_equal(a, e)


def test_a_file_is_read_without_keras_and_h5py_comes_only_when_it_is_needed(saved):
    code = f"""
import sys
sys.modules["keras"] = None  # an import would fail
import seqjax.interop.keras
assert "h5py" not in sys.modules
print(seqjax.interop.keras.load_keras({str(saved[0])!r})[0])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == repr(saved[1][0])


def test_a_compressed_file_is_read_too(saved, tmp_path):
    path = rewritten(tmp_path, members(saved[0]), zipfile.ZIP_DEFLATED)
    assert load_keras(path)[0] == saved[1][0]


# -- nothing is executed -----------------------------------------------------------------------


def test_a_lambda_layer_is_refused_and_not_run(saved, tmp_path):
    marker = tmp_path / "executed"
    function = lambda x, path=str(marker): (pathlib.Path(path).touch(), x)[1]  # noqa: E731
    model = keras.Sequential([keras.Input((None, 2)), L.Lambda(function)])
    model.save(tmp_path / "lambda.keras")
    marker.unlink(missing_ok=True)
    with pytest.raises(ValueError, match="never run"):
        load_keras(tmp_path / "lambda.keras")
    assert not marker.exists()


@pytest.mark.parametrize(
    "entry",
    [
        {"module": "os", "class_name": "system", "config": {}, "registered_name": None},
        {"module": "kerasx.layers", "class_name": "Dense", "config": {}, "registered_name": None},
        {"module": None, "class_name": "Dense", "config": {}, "registered_name": "mine>Dense"},
        {"module": "keras.layers", "class_name": "Dense", "config": {}, "registered_name": "mine>Dense"},
    ],
)
def test_a_custom_object_is_refused_by_name(saved, tmp_path, entry):
    path = with_config(tmp_path, saved, lambda layers: layers.append(entry))
    with pytest.raises(ValueError, match="custom object"):
        load_keras(path)


def test_an_activation_that_is_code_is_refused(saved, tmp_path):
    def change(layers):
        layers[-1]["config"]["activation"] = {"class_name": "__lambda__", "config": {"value": ["4wEA", None, None]}}

    with pytest.raises(ValueError, match="activation"):
        load_keras(with_config(tmp_path, saved, change))


# -- no memory is taken for what a file only declares --------------------------------------------


def peak_of(function):
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["model.weights.h5", "config.json", "metadata.json"])
def test_a_zip_bomb_is_refused_unread(saved, tmp_path, name):
    bomb = rewritten(tmp_path, members(saved[0]) | {name: b"0" * 2**25}, zipfile.ZIP_DEFLATED)

    def read():
        with pytest.raises(ValueError, match="bytes"):
            load_keras(bomb)

    assert peak_of(read) < 2**22


def test_weights_above_the_limit_are_refused(saved):
    with pytest.raises(ValueError, match="limit"):
        load_keras(saved[0], max_bytes=1000)


SHAPE_BOMBS = {
    "chunked": lambda group: group.create_dataset("0", (2**20, 2**20), "f4", chunks=(1, 1)),
    "never written": lambda group: group.create_dataset("0", (4, 1), "f4"),
    "huge": lambda group: group.create_dataset("0", (2**24, 2**10), "f4"),
    "object": lambda group: group.create_dataset("0", data=np.array([["a"]] * 4, object), dtype=h5py.string_dtype()),
    "integer": lambda group: group.create_dataset("0", data=np.ones((4, 1), "i4")),
    "compressed": lambda group: group.create_dataset("0", data=np.ones((4, 1), "f4"), compression="gzip"),
    "external": lambda group: group.create_dataset("0", (4, 1), "f4", external=[("/etc/hostname", 0, 16)]),
    "virtual": lambda group: group.create_virtual_dataset("0", h5py.VirtualLayout((4, 1), "f4")),
    "external link": lambda group: group.__setitem__("0", h5py.ExternalLink("other.h5", "/x")),
    "soft link": lambda group: group.__setitem__("0", h5py.SoftLink("/layers/dense/vars/1")),
    "group": lambda group: group.create_group("0"),
    "another shape": lambda group: group.create_dataset("0", data=np.ones((5, 1), "f4")),
    "another dtype": lambda group: group.create_dataset("0", data=np.ones((2, 1), "f8")),
    "missing": lambda group: None,
    "one more": lambda group: group.create_dataset("7", data=np.ones((2, 1), "f4")) and group.copy("1", "0"),
}


@pytest.mark.parametrize("kind", SHAPE_BOMBS)
def test_an_array_that_is_not_what_its_layer_implies_is_refused_unread(saved, tmp_path, kind):
    def change(file):
        del file["layers/dense/vars/0"]
        SHAPE_BOMBS[kind](file["layers/dense/vars"])

    path = with_weights(tmp_path, saved, change)

    def read():
        with pytest.raises(ValueError, match="Dense"):
            load_keras(path)

    assert peak_of(read) < 2**22


# -- damaged files are ValueErrors -----------------------------------------------------------------


def test_what_is_no_keras_3_sequential_is_refused(saved, tmp_path):
    contents = members(saved[0])
    cases = {
        "keras_version": contents | {"metadata.json": b'{"keras_version": "2.15.0"}'},
        "JSON": contents | {"config.json": b"{"},
        "an object": contents | {"config.json": b"[]"},
        "Functional": contents | {"config.json": b'{"class_name": "Functional"}'},
        "one member": {name: data for name, data in contents.items() if name != "model.weights.h5"},
        "readable": contents | {"model.weights.h5": b"not HDF5"},
        "deep|JSON|inside": contents | {"config.json": b'{"a":' * 100_000},
    }
    for message, changed in cases.items():
        with pytest.raises(ValueError, match=message if message != "keras_version" else "Keras 3"):
            load_keras(rewritten(tmp_path, changed))
    (tmp_path / "text.keras").write_text("hello")
    with pytest.raises(ValueError, match=r"readable.*; save the model as .keras, with model.save"):
        load_keras(tmp_path / "text.keras")
    with pytest.raises(FileNotFoundError):
        load_keras(tmp_path / "absent.keras")


def test_layers_nested_without_end_are_refused(saved, tmp_path):
    def change(layers):
        inner = copy.deepcopy(layers[-1])
        for _ in range(50):
            inner = {"module": "keras", "class_name": "Sequential", "config": {"layers": [inner]}}
        layers.append(inner)

    with pytest.raises(ValueError, match="inside one another"):
        load_keras(with_config(tmp_path, saved, change))


JUNK = st.sampled_from([None, True, False, -1, 0, 2, 10**12, 0.5, float("nan"), "", "relu", [], [2, 2], {}, "x" * 50])


def paths(value, at=()):
    """Where every value of a JSON document is."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*at, key)
        yield from paths(inner, (*at, key))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_damaged_configuration_is_a_value_error_or_a_model(saved, tmp_path_factory, data):
    contents = members(saved[0])
    config = json.loads(contents["config.json"])
    path = data.draw(st.sampled_from(sorted(paths(config), key=str)))
    at = config
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = data.draw(JUNK)
    file = rewritten(tmp_path_factory.mktemp("damaged"), contents | {"config.json": json.dumps(config)})
    try:
        model, _ = load_keras(file)
    except ValueError:
        return
    assert isinstance(model, seqjax.Serial)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_damaged_byte_is_a_value_error_or_a_model(saved, tmp_path_factory, data):
    raw = bytearray(saved[0].read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "model.keras"
    path.write_bytes(raw[: data.draw(st.integers(len(raw) // 2, len(raw)))] if data.draw(st.booleans()) else raw)
    try:
        model, _ = load_keras(path)
    except ValueError:
        return
    assert isinstance(model, seqjax.Serial)

# SPDX-License-Identifier: Apache-2.0
"""Models as data and back."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import seqjax
from seqjax import initializers
from seqjax.base import Described
from seqjax.training import build, describe

MODELS = [
    seqjax.Dense(10),
    seqjax.Serial(
        seqjax.Conv1D(20, width=4, stride=2, padding="valid"),
        seqjax.RNN(seqjax.GRU(20, normalize="layer")),
        seqjax.Residual(seqjax.RNN(seqjax.PeepholeLSTM(20))),
        seqjax.Dense(10),
    ),
    seqjax.BatchMajor(seqjax.Bidirectional(seqjax.RNN(seqjax.Simple(3, activation="relu")))),
    seqjax.RNN(
        seqjax.LSTM(4, proj_dim=2, bias_init=initializers.Chrono(50), dtypes=seqjax.DTypes(compute="bfloat16")),
        engine=seqjax.engines.Scan(unroll=4),
    ),
]


@dataclasses.dataclass(frozen=True, repr=False)
class Own(Described):
    """A user's class, with a field of every kind that can be written down."""

    size: int
    rates: tuple[float, ...] = (0.5, math.inf, -math.inf)
    names: tuple[str, ...] = ()
    inner: object = None
    flag: bool = True
    function: object = None


def double(x):
    return 2 * x


@pytest.mark.parametrize("model", MODELS, ids=repr)
def test_a_model_comes_back_equal_through_json(model):
    text = json.dumps(describe(model), allow_nan=False)
    assert build(json.loads(text)) == model


def test_defaults_are_written_down():
    # So that a version with another default still builds the model that was trained.
    assert describe(seqjax.Dense(1))["fields"]["use_bias"] is True


def test_a_users_class_and_function_come_back_if_handed_in():
    model = Own(3, names=("a", "b"), inner=seqjax.GRU(2), flag=False, function=double)
    types = (Own, double)
    assert build(json.loads(json.dumps(describe(model, types))), types) == model


def test_a_users_class_must_be_handed_in_to_save_it():
    with pytest.raises(ValueError, match=r"Own, which is not one of seqjax's own.*pass types=\(Own,\)"):
        describe(Own(3))


def test_a_users_class_must_be_handed_in_to_build_it():
    with pytest.raises(ValueError, match=r"unknown class 'Own'.*pass it in types="):
        build(describe(Own(3), types=(Own,)))


def test_a_function_says_where_it_is_and_to_use_its_name():
    model = seqjax.Serial(seqjax.Dense(2), seqjax.Dense(1, activation=jnp.tanh))
    with pytest.raises(ValueError, match=r"Serial.layers\[1\].activation is the function.*give its name.*'tanh'"):
        describe(model)
    with pytest.raises(ValueError, match=r"RNN.cell.bias_init is the function.*give its name as a string, 'ones'"):
        describe(seqjax.RNN(seqjax.GRU(2, bias_init=jax.nn.initializers.ones)))


@pytest.mark.parametrize("function", [jax.nn.initializers.orthogonal(0.5), lambda key, shape, dtype: 0, double])
def test_a_function_without_a_string_that_stands_for_it_is_to_become_a_dataclass(function):
    with pytest.raises(ValueError, match=r"w_rec_init is the function.*saved; write a frozen dataclass with __call__"):
        describe(seqjax.RNN(seqjax.GRU(2, w_rec_init=function)))


@pytest.mark.parametrize("value", [[1], {"a": 1}, jnp.ones(2), 1j], ids=["list", "dict", "array", "complex"])
def test_what_is_no_hyperparameter_is_refused(value):
    with pytest.raises(ValueError, match=r"Own.inner is a .*cannot be saved"):
        describe(Own(3, inner=value), types=(Own,))


@pytest.mark.parametrize(
    "description",
    [
        {"class": "system", "fields": {"command": "true"}},
        {"class": "os.system", "fields": {}},
        {"class": "__import__", "fields": {}},
        {"class": "ModuleType", "fields": {"name": "x"}},
        {"class": "double", "fields": {"x": 1}},
        {"class": ["GRU"], "fields": {}},
        {"function": "eval"},
        {"function": "GRU"},
        {"class": "GRU"},
        {"class": "GRU", "fields": {}, "more": 1},
        {"class": "GRU", "fields": [20]},
        {},
    ],
    ids=str,
)
def test_nothing_but_known_classes_is_made(description):
    with pytest.raises(ValueError, match=r"unknown (class|function)|not a model's description"):
        build(description, types=(double,))


def test_a_field_of_another_version_is_refused_by_name():
    description = describe(seqjax.Dense(1))
    description["fields"]["gain"] = 2
    with pytest.raises(ValueError, match=r"Dense has no field \['gain'\]"):
        build(description)


def test_a_hyperparameter_out_of_range_is_refused_by_the_class_itself():
    description = describe(seqjax.Dense(1))
    description["fields"]["features"] = -1
    with pytest.raises(ValueError, match=r"features"):
        build(description)


def test_a_users_class_may_not_take_a_name_of_seqjax():
    impostor = dataclasses.make_dataclass("GRU", ["hidden_dim"], frozen=True)
    with pytest.raises(ValueError, match=r"holds a second 'GRU'"):
        describe(seqjax.Dense(1), types=(impostor,))


def test_a_lambda_has_no_name_to_be_found_by():
    with pytest.raises(ValueError, match=r"named functions"):
        describe(seqjax.Dense(1), types=(lambda x: x,))


def test_numbers_of_numpy_are_numbers():
    model = seqjax.RNN(seqjax.cells.Zoneout(seqjax.GRU(np.int64(20)), np.float32(0.25)))
    assert build(json.loads(json.dumps(describe(model)))) == model

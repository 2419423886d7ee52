# SPDX-License-Identifier: Apache-2.0
"""PyTorch against seqjax, live: values and gradients, state dicts, safetensors files, refusals by name."""

import io
import json
import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import seqjax
from seqjax.interop.torch import (
    from_state_dict,
    from_torch,
    load_safetensors,
    read_safetensors,
    to_state_dict,
    to_torch,
)

torch = pytest.importorskip("torch")
nn = torch.nn

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
LENGTHS = np.array([6, 3, 1])
T, B, D = 6, 3, 2


def scrambled(module, dtype=torch.float64):
    """The module with random weights everywhere, so that no zero hides an error."""
    random = np.random.default_rng(0)
    module = module.to(dtype)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.from_numpy(random.normal(size=parameter.shape) * 0.5))
    return module


def array(tensor):
    return tensor.detach().numpy()


def assert_same(actual, expected):
    """The same model and, bit for bit, the same params."""
    assert actual[0] == expected[0]
    assert jax.tree.structure(actual[1]) == jax.tree.structure(expected[1])
    for a, e in zip(jax.tree.leaves(actual[1]), jax.tree.leaves(expected[1]), strict=True):
        assert a.dtype == e.dtype
        assert np.array_equal(a, e)


def directions(tree):
    """The recurrent layers' params or carries in `tree`, layer by layer, forward before backward."""
    if hasattr(tree, "_fields"):
        return [tree]
    return [found for part in tree for found in directions(part)]


# -- recurrent modules: values, gradients of params, inputs and initial state ---------------------


def torch_results(module, xs, states, weights, lengths):
    """Outputs, final states and the gradients of a linear form of both."""
    xs = torch.tensor(xs, requires_grad=True)
    states = [torch.tensor(state, requires_grad=True) for state in states]
    given = (
        nn.utils.rnn.pack_padded_sequence(xs, torch.tensor(lengths), enforce_sorted=False)
        if lengths is not None
        else xs
    )
    ys, after = module(given, tuple(states) if len(states) > 1 else states[0])
    if lengths is not None:
        ys, _ = nn.utils.rnn.pad_packed_sequence(ys, total_length=len(xs))
    after = after if isinstance(after, tuple) else (after,)
    outputs = (ys, *after)
    sum((out * torch.tensor(w)).sum() for out, w in zip(outputs, weights, strict=True)).backward()
    parameters = {name: array(p.grad) for name, p in module.named_parameters()}
    return [array(out) for out in outputs], parameters, array(xs.grad), [array(state.grad) for state in states]


def seqjax_results(model, params, xs, carry, weights, lengths):
    mask = None if lengths is None else jnp.asarray(np.arange(len(xs))[:, None] < lengths)

    def loss(params, xs, carry):
        after, ys = model.apply(params, carry, xs, mask=mask)
        fields = type(directions(after)[0])._fields
        outputs = (ys, *(jnp.stack([getattr(state, name) for state in directions(after)]) for name in fields))
        return sum(jnp.sum(out * w) for out, w in zip(outputs, weights, strict=True)), outputs

    (_, outputs), gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(params, xs, carry)
    return outputs, gradients


def from_rows(rows, gates):
    """PyTorch's `[G*H, ...]` in our layout, by hand: transposed, and for a GRU r, z, n as z, r, n."""
    blocks = np.split(rows, gates)
    return np.concatenate([blocks[1], blocks[0], blocks[2]] if gates == 3 else blocks).T


def expected_gradients(module, gradients):
    """The gradients of every direction's params, by name; a merged bias has that of either."""
    gates = {nn.RNN: 1, nn.GRU: 3, nn.LSTM: 4}[type(module)]
    expected = []
    for number in range(module.num_layers):
        for reverse in ("", "_reverse")[: 1 + module.bidirectional]:
            suffix = f"_l{number}{reverse}"
            names = {"w_in": "weight_ih", "w_rec": "weight_hh", "bias": "bias_ih"}
            names |= {"bias_rec": "bias_hh"} if gates == 3 else {}
            found = {
                ours: from_rows(gradients[theirs + suffix], gates)
                for ours, theirs in names.items()
                if theirs + suffix in gradients
            }
            if "weight_hr" + suffix in gradients:
                found["w_proj"] = gradients["weight_hr" + suffix].T
            expected.append(found)
    return expected


MODULES = {
    "rnn-tanh-stacked": (lambda: nn.RNN(D, 3, num_layers=2, dropout=0.3), None),
    "rnn-relu-no-bias": (lambda: nn.RNN(D, 3, nonlinearity="relu", bias=False), None),
    "lstm-lengths": (lambda: nn.LSTM(D, 3), LENGTHS),
    "lstm-projected-bidirectional-stacked": (
        lambda: nn.LSTM(D, 4, num_layers=2, bidirectional=True, proj_size=3),
        LENGTHS,
    ),
    "gru-lengths": (lambda: nn.GRU(D, 3), LENGTHS),
    "gru-bidirectional-no-bias": (lambda: nn.GRU(D, 3, bidirectional=True, bias=False), LENGTHS),
    "gru-stacked": (lambda: nn.GRU(D, 3, num_layers=2), None),
}
CASES = [(name, torch.float64) for name in MODULES] + [
    (name, torch.float32) for name in ("rnn-relu-no-bias", "lstm-lengths", "gru-lengths")
]


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_a_recurrent_module_gives_the_same_values_and_gradients_and_comes_back(name, dtype):
    make, lengths = MODULES[name]
    module = scrambled(make(), dtype).eval()
    model, params = from_torch(module)
    random = np.random.default_rng(1)
    numpy_dtype = np.dtype(str(dtype).removeprefix("torch."))
    layers = module.num_layers * (1 + module.bidirectional)
    out = module.proj_size or module.hidden_size
    sizes = {"h": out, "c": module.hidden_size} if isinstance(module, nn.LSTM) else {"h": out}
    states = [random.normal(size=(layers, B, size)).astype(numpy_dtype) for size in sizes.values()]
    xs = random.normal(size=(T, B, D)).astype(numpy_dtype)
    width = out * (1 + module.bidirectional)
    weights = [random.normal(size=(T, B, width)).astype(numpy_dtype)]
    weights += [random.normal(size=state.shape).astype(numpy_dtype) for state in states]

    carry = model.initial_carry(params, (B,))
    own = [type(leaf)(*(jnp.asarray(state[i]) for state in states)) for i, leaf in enumerate(directions(carry))]
    treedef = jax.tree.structure(carry, is_leaf=lambda node: hasattr(node, "_fields"))
    outputs, (d_params, d_xs, d_carry) = seqjax_results(
        model, params, jnp.asarray(xs), jax.tree.unflatten(treedef, own), weights, lengths
    )
    expected, d_weights, expected_d_xs, d_states = torch_results(module, xs, states, weights, lengths)

    def close(actual, wanted):
        assert actual.dtype == wanted.dtype
        tolerance = TOLERANCE[dtype]
        np.testing.assert_allclose(actual, wanted, rtol=tolerance, atol=tolerance * max(1.0, np.abs(wanted).max()))

    for actual, wanted in zip(outputs, expected, strict=True):
        close(actual, wanted)
    close(d_xs, expected_d_xs)
    for i, state in enumerate(directions(d_carry)):
        for actual, wanted in zip(state, d_states, strict=True):
            close(actual, wanted[i])
    for actual, wanted in zip(directions(d_params), expected_gradients(module, d_weights), strict=True):
        assert {field for field, leaf in zip(actual._fields, actual, strict=True) if leaf is not None} == set(wanted)
        for field, gradient in wanted.items():
            close(getattr(actual, field), gradient)

    assert_same(from_torch(to_torch(model, params)), (model, params))
    back = to_torch(model, params)
    assert type(back) is type(module)
    with torch.no_grad():
        again, _ = back.eval()(torch.tensor(xs))
        np.testing.assert_allclose(array(again), array(module(torch.tensor(xs))[0]), rtol=0, atol=10 * TOLERANCE[dtype])


def test_models_print_as_what_they_are_and_batch_first_changes_nothing():
    model, _ = from_torch(nn.LSTM(2, 3, num_layers=2, dropout=0.25, batch_first=True))
    assert repr(model) == "Serial(RNN(LSTM(3)), Dropout(0.25), RNN(LSTM(3)))"
    assert repr(from_torch(nn.GRU(2, 3, bidirectional=True))[0]) == "Bidirectional(RNN(GRU(3, reset='after')))"
    assert from_torch(nn.LSTM(2, 5, proj_size=3))[0].cell.proj_dim == 3


def test_both_biases_of_a_gru_are_kept_and_those_of_an_lstm_are_added():
    gru, lstm = scrambled(nn.GRU(2, 1), torch.float32), scrambled(nn.LSTM(2, 1), torch.float32)
    params = from_torch(gru)[1]
    assert params.bias.tolist() == array(gru.bias_ih_l0)[[1, 0, 2]].tolist()
    assert params.bias_rec.tolist() == array(gru.bias_hh_l0)[[1, 0, 2]].tolist()
    model, params = from_torch(lstm)
    assert params.bias.tolist() == (array(lstm.bias_ih_l0) + array(lstm.bias_hh_l0)).tolist()
    back = to_torch(model, params)
    assert array(back.bias_ih_l0).tolist() == params.bias.tolist()
    assert not array(back.bias_hh_l0).any()


def test_bfloat16_weights_come_and_go_bit_for_bit():
    module = scrambled(nn.GRU(2, 3), torch.bfloat16)
    model, params = from_torch(module)
    assert {leaf.dtype.name for leaf in params if leaf is not None} == {"bfloat16"}
    for name, tensor in to_torch(model, params).state_dict().items():
        assert torch.equal(tensor, module.state_dict()[name])


# -- other modules -----------------------------------------------------------------------------

POINTWISE = {
    "linear": (lambda: nn.Linear(D, 4), "Dense(4)"),
    "linear-no-bias": (lambda: nn.Linear(D, 4, bias=False), "Dense(4, use_bias=False)"),
    "layer-norm": (lambda: nn.LayerNorm(D, eps=1e-3), "LayerNorm(epsilon=0.001)"),
    "layer-norm-scale": (lambda: nn.LayerNorm(D, bias=False), "LayerNorm(use_offset=False)"),
    "mlp": (
        lambda: nn.Sequential(
            nn.Linear(D, 4), nn.SiLU(), nn.Dropout(0.5), nn.LayerNorm(4), nn.Linear(4, 1), nn.Hardtanh()
        ),
        "Serial(Dense(4), Activation('silu'), Dropout(0.5), LayerNorm(), Dense(1), Activation('hard_tanh'))",
    ),
    "gelu": (lambda: nn.GELU(approximate="tanh"), "Activation('gelu')"),
}
CONVOLUTIONS = {
    "valid-stride": (lambda: nn.Conv1d(D, 4, 3, stride=2), "Conv1D(4, 3, stride=2, padding='valid')"),
    "same-even-width": (lambda: nn.Conv1d(D, 4, 4, padding="same"), "Conv1D(4, 4, padding='same')"),
    "same-by-number": (
        lambda: nn.Conv1d(D, 4, 3, padding=2, dilation=2, bias=False),
        "Conv1D(4, 3, padding='same', dilation=2, use_bias=False)",
    ),
    "then-relu": (
        lambda: nn.Sequential(nn.Conv1d(D, 4, 2), nn.ReLU()),
        "Serial(Conv1D(4, 2, padding='valid'), Activation('relu'))",
    ),
}


@pytest.mark.parametrize("name", [*POINTWISE, *CONVOLUTIONS])
def test_a_module_without_recurrence_gives_the_same_values_and_gradients_and_comes_back(name):
    make, code = (POINTWISE | CONVOLUTIONS)[name]
    assert repr(from_torch(make())[0]) == code
    module = scrambled(make()).eval()
    if not list(module.parameters()):
        module.double()
    model, params = from_torch(module)
    random = np.random.default_rng(1)
    xs = random.normal(size=(T, B, D))
    given = torch.tensor(xs, requires_grad=True)
    ys = module(given.permute(1, 2, 0)).permute(2, 0, 1) if name in CONVOLUTIONS else module(given)
    weights = random.normal(size=ys.shape)
    (ys * torch.tensor(weights)).sum().backward()

    def loss(params, xs):
        _, ys = model.apply(params, model.initial_carry(params, (B,)), xs)
        return jnp.sum(ys * weights), ys

    (_, actual), (d_params, d_xs) = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, jnp.asarray(xs))
    np.testing.assert_allclose(actual, array(ys), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(d_xs, array(given.grad), rtol=1e-10, atol=1e-10)
    for a, p in zip(jax.tree.leaves(d_params), module.parameters(), strict=True):
        np.testing.assert_allclose(a, array(p.grad).T, rtol=1e-10, atol=1e-10)
    assert_same(from_torch(to_torch(model, params)), (model, params))


def test_an_embedding_gives_the_same_vectors_and_comes_back():
    module = scrambled(nn.Embedding(5, 3))
    model, params = from_torch(module)
    ids = np.array([[0, 4], [2, 2]])
    assert np.array_equal(model.apply(params, (), jnp.asarray(ids))[1], array(module(torch.tensor(ids))))
    assert_same(from_torch(to_torch(model, params)), (model, params))


# -- state dicts and files -----------------------------------------------------------------------


def state_of(module):
    return {name: array(tensor) for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru"])
def test_a_bare_state_dict_says_layers_directions_biases_and_sizes(kind):
    options = {"proj_size": 2} if kind == "lstm" else {}
    module = scrambled(getattr(nn, kind.upper())(2, 3, num_layers=3, bidirectional=True, **options), torch.float32)
    expected = from_torch(module)
    assert_same(from_state_dict(state_of(module), kind), expected)
    assert_same(from_torch(module.state_dict(), kind=kind), expected)
    assert_same(from_state_dict({name: jnp.asarray(a) for name, a in state_of(module).items()}, kind), expected)


def test_weights_in_the_byte_order_of_another_machine_are_read():
    state = state_of(scrambled(nn.GRU(2, 3), torch.float32))
    assert_same(
        from_state_dict({name: a.astype(">f4") for name, a in state.items()}, "gru"), from_state_dict(state, "gru")
    )


def test_a_prefix_picks_one_module_of_a_larger_model():
    gru, other = scrambled(nn.GRU(2, 3), torch.float32), nn.Linear(3, 1)
    state = {f"encoder.{name}": a for name, a in state_of(gru).items()} | {
        f"head.{n}": a for n, a in state_of(other).items()
    }
    assert_same(from_state_dict(state, "gru", prefix="encoder."), from_torch(gru))
    with pytest.raises(ValueError, match=r"encoder\.weight_ih_l0.*prefix"):
        from_state_dict(state, "gru")
    with pytest.raises(ValueError, match="no weights"):
        from_state_dict(state, "gru", prefix="decoder.")


def test_a_state_dict_written_is_the_one_that_pytorch_has():
    module = scrambled(nn.GRU(2, 3, num_layers=2, bidirectional=True), torch.float32)
    state = to_state_dict(*from_torch(module), prefix="rnn.")
    assert list(state) == [f"rnn.{name}" for name in module.state_dict()]
    for name, tensor in module.state_dict().items():
        assert np.array_equal(state[f"rnn.{name}"], array(tensor))


INCONSISTENT = {
    "_l0: weight_ih.*16": lambda s: s | {"weight_ih_l0": np.zeros((16, 2), "float32")},
    "_l1: weight_ih.*7": lambda s: s | {"weight_ih_l1": np.zeros((12, 7), "float32")},
    "bias_hh": lambda s: s | {"bias_hh_l0": np.zeros(11, "float32")},
    "differ": lambda s: {name: a for name, a in s.items() if name != "bias_hh_l1"},
    "layers": lambda s: {name: a for name, a in s.items() if "_l1" not in name} | {"weight_ih_l7": s["weight_ih_l1"]},
    "one dtype": lambda s: s | {"bias_hh_l0": np.zeros(12, "float64")},
    "floating": lambda s: {name: a.astype("int32") for name, a in s.items()},
    "weight_hh must be": lambda s: s | {"weight_hh_l0": np.zeros(12, "float32")},
    "weight_xx_l0": lambda s: s | {"weight_xx_l0": np.zeros(1, "float32")},
    "weight_hr": lambda s: (
        s | {"weight_hr_l0": np.zeros((2, 3), "float32"), "weight_hr_l1": np.zeros((2, 3), "float32")}
    ),
    "array": lambda s: s | {"weight_ih_l0": "code"},
}


@pytest.mark.parametrize("message", INCONSISTENT)
def test_an_inconsistent_state_dict_is_refused_by_name(message):
    state = INCONSISTENT[message](state_of(nn.GRU(2, 4, num_layers=2)))
    with pytest.raises(ValueError, match=message):
        from_state_dict(state, "gru")


@pytest.mark.parametrize("hidden", [3, 4, 5])  # with and without a whole number of gates of the other kind
@pytest.mark.parametrize(("module", "own"), [(nn.LSTM, "lstm"), (nn.GRU, "gru"), (nn.RNN, "rnn")])
def test_the_weights_of_another_kind_are_recognized(module, own, hidden):
    for kind in {"rnn", "gru", "lstm"} - {own}:
        with pytest.raises(ValueError, match=f"^{kind} .*weight_hh must be .*these are the weights of kind '{own}'"):
            from_state_dict(state_of(module(2, hidden)), kind)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="kind must be one of"):
        from_state_dict({}, "transformer")


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_an_activation_that_only_an_rnn_has_is_refused(kind):
    with pytest.raises(ValueError, match=f"activation='relu' of kind '{kind}' is not supported"):
        from_state_dict(state_of(getattr(nn, kind.upper())(2, 3)), kind, activation="relu")


def test_float64_weights_are_not_cast_where_jax_has_none():
    with jax.enable_x64(False), pytest.raises(ValueError, match="jax_enable_x64"):
        from_state_dict(state_of(nn.GRU(2, 3).double()), "gru")


def test_a_safetensors_file_is_read_as_the_library_wrote_it(tmp_path):
    library = pytest.importorskip("safetensors.torch")
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        module = scrambled(nn.LSTM(2, 3, num_layers=2), dtype)
        state = {f"m.{name}": tensor.contiguous() for name, tensor in module.state_dict().items()}
        library.save_file(state | {"step": torch.tensor(3)}, tmp_path / "a.safetensors", metadata={"format": "pt"})
        assert_same(load_safetensors(tmp_path / "a.safetensors", "lstm", prefix="m."), from_torch(module))
    with pytest.raises(ValueError, match=r"step.*I64"):
        read_safetensors(tmp_path / "a.safetensors")


def test_what_is_written_can_be_saved_and_read_again(tmp_path):
    library = pytest.importorskip("safetensors.numpy")
    model, params = from_torch(scrambled(nn.GRU(2, 3), torch.float32))
    library.save_file(to_state_dict(model, params), tmp_path / "a.safetensors")
    assert_same(load_safetensors(tmp_path / "a.safetensors", "gru"), (model, params))


def safetensors_file(path, header, size=8, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + bytes(size))
    return path


def entry(shape=(2,), offsets=(0, 8), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


HOSTILE = {
    "longer than the file": {"header": {}, "length": 2**62},
    "no JSON": {"header": b"{"},
    "no object": {"header": []},
    "a name twice": {"header": b'{"a":1,"a":2}'},
    "another size": {"header": {"a": entry(shape=(2**40, 2**20))}},
    "negative": {"header": {"a": entry(shape=(-1, -2))}},
    "no entry": {"header": {"a": 3}},
    "overlapping": {"header": {"a": entry(), "b": entry()}},
    "with a gap": {"header": {"a": entry(offsets=(4, 12))}, "size": 12},
    "too short": {"header": {"a": entry()}, "size": 9},
    "too long": {"header": {"a": entry(shape=(2**30,), offsets=(0, 2**32))}},
}


@pytest.mark.parametrize("how", HOSTILE)
def test_a_damaged_safetensors_file_is_refused(tmp_path, how):
    pytest.importorskip("safetensors")
    path = safetensors_file(tmp_path / "a.safetensors", **HOSTILE[how])
    with pytest.raises(ValueError, match=r"a\.safetensors is not a safetensors file"):
        read_safetensors(path)


def test_a_large_safetensors_file_is_refused_before_memory_is_taken(tmp_path):
    pytest.importorskip("safetensors")
    path = safetensors_file(tmp_path / "a.safetensors", {"a": entry(shape=(300,), offsets=(0, 1200))}, size=1200)
    with pytest.raises(ValueError, match=r"1200 bytes.*limit"):
        read_safetensors(path, max_bytes=1000)


class Executed:
    def __reduce__(self):
        return (exec, ("raise SystemExit('a pickle was run')",))


def test_a_pickle_is_refused_and_not_run(tmp_path):
    torch.save(nn.GRU(2, 3).state_dict(), tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Executed()))
    legacy = io.BytesIO()
    torch.save({"a": torch.zeros(2)}, legacy, _use_new_zipfile_serialization=False)
    (tmp_path / "c.pt").write_bytes(legacy.getvalue())
    for name in "abc":
        with pytest.raises(ValueError, match=r"pickle.*weights_only"):
            load_safetensors(tmp_path / f"{name}.pt", "gru")


def test_importing_the_converters_imports_no_torch():
    code = "import sys, seqjax.interop.torch; sys.exit('torch' in sys.modules or 'safetensors' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -- refusals ----------------------------------------------------------------------------------


class Mine(nn.LSTM):
    """Anything."""


UNREADABLE = {
    "a class of": lambda: Mine(2, 3),
    "TransformerEncoderLayer": lambda: nn.TransformerEncoderLayer(4, 2),
    "LSTMCell": lambda: nn.LSTMCell(2, 3),
    "recurrent module in a Sequential": lambda: nn.Sequential(nn.LSTM(2, 3)),
    "Conv1d next to": lambda: nn.Sequential(nn.Conv1d(2, 3, 1), nn.Linear(3, 1)),
    "empty": lambda: nn.Sequential(),
    "groups=2": lambda: nn.Conv1d(4, 4, 2, groups=2),
    "padding_mode='circular'": lambda: nn.Conv1d(2, 3, 3, padding=1, padding_mode="circular"),
    "padding=": lambda: nn.Conv1d(2, 3, 3, padding=2),
    "normalized_shape": lambda: nn.LayerNorm((2, 3)),
    r"padding_idx=0 .*set module.padding_idx = None.* mask=\(ids != 0\)": lambda: nn.Embedding(3, 2, padding_idx=0),
    "max_norm": lambda: nn.Embedding(3, 2, max_norm=1.0),
    "approximate='none'": lambda: nn.GELU(),
    "negative_slope": lambda: nn.LeakyReLU(0.3),
    "parametrize": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(2, 3)),
}


@pytest.mark.parametrize("message", UNREADABLE)
def test_what_seqjax_has_not_is_refused_by_name(message):
    with pytest.raises(ValueError, match=message):
        from_torch(UNREADABLE[message]())


def gru(**options):
    return seqjax.RNN(seqjax.GRU(2, reset="after", **options))


UNWRITABLE = {
    "reset='before'": seqjax.RNN(seqjax.GRU(2)),
    "MinGRU": seqjax.RNN(seqjax.MinGRU(2)),
    "PeepholeLSTM": seqjax.RNN(seqjax.PeepholeLSTM(2)),
    "normalize='layer'": gru(normalize="layer"),
    "activation='relu'": gru(activation="relu"),
    "recurrent_activation='hard_sigmoid'": gru(recurrent_activation="hard_sigmoid"),
    "alike": seqjax.Serial(gru(), gru(use_bias=False)),
    "both ways, or none": seqjax.Serial(gru(), seqjax.Bidirectional(gru())),
    "one rate": seqjax.Serial(gru(), seqjax.Dropout(0.1), gru(), gru()),
    "Dense.* cannot be one of its layers": seqjax.Serial(gru(), seqjax.Dense(1)),
    "merge='sum'": seqjax.Bidirectional(gru(), merge="sum"),
    "carry": gru(dtypes=seqjax.DTypes(carry="float64")),
    "causal": seqjax.Conv1D(2, 2),
    "inside": seqjax.Dense(2, activation="relu"),
    "variational": seqjax.Serial(seqjax.Dense(2), seqjax.Dropout(0.5, variational=True)),
    "use_scale": seqjax.LayerNorm(use_scale=False),
    "BatchNorm": seqjax.BatchNorm(),
    "softplus": seqjax.Activation("softplus"),
}


@pytest.mark.parametrize("message", UNWRITABLE)
def test_what_pytorch_has_not_is_refused_by_name(message):
    model = UNWRITABLE[message]
    with jax.ensure_compile_time_eval():
        shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.ones((4, 3), "float32")))
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    with pytest.raises(ValueError, match=message):
        to_torch(model, params)


def test_params_of_another_model_are_refused():
    model, params = from_torch(nn.GRU(2, 3))
    with pytest.raises(ValueError, match=r"w_rec must have shape \(4, 12\), got \(3, 9\)"):
        to_state_dict(seqjax.RNN(seqjax.GRU(4, reset="after")), params._replace(w_in=np.zeros((2, 12), "float32")))
    with pytest.raises(ValueError, match="bias_rec is None"):
        to_state_dict(model, params._replace(bias_rec=None))
    with pytest.raises(ValueError, match="its dtypes say float32"):
        to_state_dict(model, jax.tree.map(lambda leaf: leaf.astype("float64"), params))
    with pytest.raises(ValueError, match="has no bias, but the params have one"):
        to_state_dict(seqjax.RNN(seqjax.GRU(3, reset="after", use_bias=False)), params)

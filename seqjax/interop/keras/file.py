# SPDX-License-Identifier: Apache-2.0
"""Records of `.keras` files, read with only zipfile, json and h5py.

The file is untrusted data. Nothing in it is executed or imported: a layer is looked up by name among
those known here, and code (Lambda layers, custom objects) is rejected. No memory is allocated for what
the file merely declares: before they are read, archive members and arrays are checked against the limit,
and an array also against its layer's options and against the bytes that the file really has for it.
"""

import contextlib
import io
import json
import math
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Collection, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from seqjax.base import Layer, Params
from seqjax.interop.keras.reading import convert
from seqjax.interop.keras.record import Record, Weight, check_ignore, variables_of
from seqjax.interop.layout import unsupported

_JSON_BYTES = 2**24
_EXPANSION = 100  # how many times larger than its compressed form a member may be, as weights hardly compress
_DEPTH = 8  # of layers inside layers
_VARIABLES_OF_CELL = ("SimpleRNN", "LSTM", "GRU")


def load_keras(
    path: str | os.PathLike, *, ignore: Collection[str] = (), max_bytes: int = 2**31
) -> tuple[Layer, Params]:
    """The `Sequential` in a `.keras` file (Keras 3) as a seqjax model and its params, without Keras.

    Args:
      path: the file. Nothing in it is executed.
      ignore: as for `from_keras`.
      max_bytes: reject weights that take more than this.

    Returns:
      A `Serial`, time-major, and its params, as from `from_keras`.

    Raises:
      ValueError: a damaged or hostile file, or anything that `from_keras` rejects; also any custom class,
        as only a live object can be passed to a function of yours.
      FileNotFoundError: no such file.
    """
    check_ignore(ignore)
    with _readable(path), zipfile.ZipFile(path) as archive:
        version = _json(archive, "metadata.json").get("keras_version")
        if not isinstance(version, str) or not version.startswith("3."):
            raise ValueError(f"{path} was written by Keras {version!r}; load_keras reads files of Keras 3.")
        description = _json(archive, "config.json")
        if description.get("class_name") != "Sequential":
            raise unsupported(str(path), f"a {description.get('class_name')!r} model", "a Sequential is")
        weights = io.BytesIO(_member(archive, "model.weights.h5", max_bytes))
        import h5py

        with h5py.File(weights, "r") as store:
            return convert(_Reader(store, max_bytes).record(description, ""), ignore=ignore)


@contextlib.contextmanager
def _readable(path: str | os.PathLike) -> Iterator[None]:
    """Turns what zipfile and h5py raise for a damaged file into a ValueError that names the file."""
    try:
        yield
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except (zipfile.BadZipFile, zlib.error, struct.error, LookupError, RuntimeError, EOFError, OSError) as error:
        raise ValueError(
            f"{path} is not a readable .keras file: {error}; save the model as .keras, with model.save('name.keras')."
        ) from error


def _member(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    """A member of the archive, whose size is checked before it is read."""
    found = [info for info in archive.infolist() if info.filename == name]
    if len(found) != 1:
        raise ValueError(f"{archive.filename} must have one member {name}, got {len(found)}.")
    size, packed = found[0].file_size, found[0].compress_size
    if size > limit:
        raise ValueError(f"{archive.filename}: {name} takes {size} bytes, the limit is {limit}.")
    if found[0].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise unsupported(str(archive.filename), f"the compression of {name}", "Keras stores it")
    if size > _EXPANSION * max(packed, 1):
        raise ValueError(f"{archive.filename}: {name} expands from {packed} to {size} bytes; that is no model.")
    return archive.read(found[0])


def _json(archive: zipfile.ZipFile, name: str) -> dict[str, Any]:
    try:
        value = json.loads(_member(archive, name, _JSON_BYTES))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{archive.filename}: {name} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{archive.filename}: {name} must hold an object, got {type(value).__name__}.")
    return value


class _Reader:
    """Walks the configuration and finds the variables of each layer where Keras puts them."""

    def __init__(self, store: Any, budget: int):
        self.store = store
        self.budget = budget  # bytes of weights still allowed

    def record(self, description: Any, path: str, depth: int = 0) -> Record:
        """The record of a serialized layer whose variables are under `path`."""
        if depth > _DEPTH:
            raise ValueError(f"a .keras file with more than {_DEPTH} layers inside one another is not read.")
        name, config = _class_and_config(description)
        parts: dict[str, tuple[Record, ...]] = {}
        if name == "Sequential":
            parts["layers"] = self._list(config.get("layers"), f"{path}layers/", depth)
        elif name == "StackedRNNCells":
            parts["cells"] = self._list(config.get("cells"), f"{path}cells/", depth)
        elif name == "Bidirectional":
            parts["forward_layer"] = (self.record(config.get("layer"), f"{path}forward_layer/", depth + 1),)
            parts["backward_layer"] = (self.record(config.get("backward_layer"), f"{path}backward_layer/", depth + 1),)
        elif name == "TimeDistributed":
            parts["layer"] = (self.record(config.get("layer"), f"{path}layer/", depth + 1),)
        elif name == "RNN":
            parts["cell"] = (self.record(config.get("cell"), f"{path}cell/", depth + 1),)
        group = f"{path}cell/vars" if name in _VARIABLES_OF_CELL else f"{path}vars"
        weights = self._weights(f"keras {name} {config.get('name', '')!r}", group, variables_of(name, config))
        return Record(name, config, _input_shape(description), weights, parts)

    def _list(self, descriptions: Any, path: str, depth: int) -> tuple[Record, ...]:
        """The records of layers in a list, which are stored under their class, numbered if it recurs."""
        if not isinstance(descriptions, list):
            raise ValueError(f"layers must be a list, got {type(descriptions).__name__}.")
        counts: dict[str, int] = {}
        records = []
        for description in descriptions:
            name = _snake_case(_class_and_config(description)[0])
            number = counts[name] = counts.get(name, -1) + 1
            records.append(
                self.record(description, f"{path}{name}_{number}/" if number else f"{path}{name}/", depth + 1)
            )
        return tuple(records)

    def _weights(self, owner: str, group: str, names: tuple[str, ...]) -> dict[str, Weight]:
        if not names:
            return {}
        found = self._follow(owner, group)
        if len(found) != len(names):
            raise ValueError(f"{owner}: its config implies variables {list(names)}, the file has {len(found)}.")
        return {name: self._weight(owner, name, self._follow(owner, f"{group}/{i}")) for i, name in enumerate(names)}

    def _follow(self, owner: str, path: str) -> Any:
        """What is at a path, following only hard links, as a soft or external one may lead out of the file."""
        import h5py

        at = self.store
        for step in path.split("/"):
            link = at.get(step, getlink=True) if isinstance(at, h5py.Group) else None
            if not isinstance(link, h5py.HardLink):
                raise ValueError(
                    f"{owner}: the file has no {path} ({'none' if link is None else type(link).__name__})."
                )
            at = at[step]
        return at

    def _weight(self, owner: str, name: str, dataset: Any) -> Weight:
        """The weight in a dataset, which the file must hold whole and in plain form."""
        import h5py

        if not isinstance(dataset, h5py.Dataset) or dataset.shape is None:
            raise ValueError(f"{owner}: {name} must be an array, got {dataset!r}.")
        bfloat16 = dataset.dtype == np.dtype("V2") and dataset.attrs.get("dtype") == "bfloat16"
        if not bfloat16 and (dataset.dtype.kind != "f" or dataset.dtype.itemsize not in (2, 4, 8)):
            raise ValueError(f"{owner}: {name} must be floating point, got {dataset.dtype}.")
        if dataset.external or dataset.is_virtual or dataset.chunks is not None:
            raise ValueError(f"{owner}: {name} must be stored in the file, in one plain block, as Keras does.")
        nbytes = math.prod(dataset.shape) * dataset.dtype.itemsize
        if nbytes > self.budget:
            raise ValueError(f"{owner}: with {name} {dataset.shape} the weights take more than the limit of max_bytes.")
        if dataset.id.get_storage_size() != nbytes:
            raise ValueError(
                f"{owner}: {name} {dataset.shape} takes {nbytes} bytes, the file holds {dataset.id.get_storage_size()}."
            )
        self.budget -= nbytes

        def read() -> np.ndarray:
            array = np.empty(dataset.shape, dataset.dtype)
            if array.size:
                dataset.read_direct(array)
            return array.view(jnp.bfloat16) if bfloat16 else array

        return Weight(tuple(dataset.shape), "bfloat16" if bfloat16 else dataset.dtype.name, read)


def _class_and_config(description: Any) -> tuple[str, dict[str, Any]]:
    """A serialized layer's class and options; only Keras' own classes are accepted."""
    if not isinstance(description, dict):
        raise ValueError(f"a layer's description must be an object, got {str(description)[:80]!r}.")
    name, config = description.get("class_name"), description.get("config")
    module, registered = description.get("module"), description.get("registered_name")
    own = isinstance(module, str) and (module == "keras" or module.startswith("keras."))
    if not isinstance(name, str) or not own or registered not in (None, name):
        raise ValueError(
            f"the custom object {registered or name!r} of {module!r} is not read from a file; load the model with "
            "Keras and convert it with from_keras(model, custom=...)."
        )
    if not isinstance(config, dict):
        raise ValueError(f"keras {name}: its config must be an object, got {str(config)[:80]!r}.")
    return name, config


def _input_shape(description: dict[str, Any]) -> tuple[int | None, ...] | None:
    build = description.get("build_config")
    shape = build.get("input_shape") if isinstance(build, dict) else None
    if not isinstance(shape, list) or not shape or not all(n is None or type(n) is int for n in shape):
        return None
    return tuple(shape)


def _snake_case(name: str) -> str:
    """Keras' name for a class in a weights file.

    >>> _snake_case("TimeDistributed"), _snake_case("Conv1D"), _snake_case("SimpleRNN")
    ('time_distributed', 'conv1d', 'simple_rnn')
    """
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()

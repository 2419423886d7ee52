# SPDX-License-Identifier: Apache-2.0
"""What help() shows of the public modules."""

import importlib
import inspect
import re

import pytest

import seqjax
from seqjax.plan import Plan

MODULES = (
    *("cells", "diagnostics", "engines", "initializers", "layers", "testing", "training"),
    *("interop.export", "interop.flax.linen", "interop.flax.nnx", "interop.haiku"),
)
PUBLIC = [(name, member) for name in MODULES for member in importlib.import_module(f"seqjax.{name}").__all__]


def public(kind):
    values = [getattr(importlib.import_module(f"seqjax.{module}"), name) for module, name in PUBLIC]
    return list(dict.fromkeys(value for value in values if kind(value)))


def is_named_tuple(value):
    return isinstance(value, type) and hasattr(value, "_fields")


@pytest.mark.parametrize("module", MODULES)
def test_what_a_module_calls_public_is_there_and_described(module):
    module = importlib.import_module(f"seqjax.{module}")
    for name in module.__all__:
        assert inspect.getdoc(getattr(module, name)), name


@pytest.mark.parametrize("tuple_type", [Plan, *public(is_named_tuple)], ids=lambda cls: cls.__name__)
def test_help_describes_every_field_of_a_named_tuple(tuple_type):
    for field in tuple_type._fields:
        assert re.search(rf"\b{field}\b[^\n]*[:`]", tuple_type.__doc__), f"{tuple_type.__name__}.{field}"


@pytest.mark.parametrize("function", public(inspect.isfunction), ids=lambda function: function.__name__)
def test_help_names_every_argument_of_a_function(function):
    for argument in inspect.signature(function).parameters:
        assert re.search(rf"\b{argument}\b", function.__doc__), argument


@pytest.mark.parametrize("method", [seqjax.Layer.apply, seqjax.LSTM(4).step, seqjax.engines.Scan().run])
def test_help_says_of_every_argument_of_the_three_words_what_it_is(method):
    for argument in inspect.signature(method).parameters:
        assert argument == "self" or re.search(rf"^ *(\w+, )*{argument}(, \w+)*:", inspect.getdoc(method), re.M)

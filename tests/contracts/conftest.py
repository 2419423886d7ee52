# SPDX-License-Identifier: Apache-2.0
"""Tests of one cell stay in one process, where its reference has been computed already."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        if "name" in parameters and "contracts" in item.nodeid:
            item.add_marker(pytest.mark.xdist_group(parameters["name"]))

# SPDX-License-Identifier: Apache-2.0
"""A run without interruption, and a disk that is full."""

import contextlib
import resource

import pytest

from tests.training.runs import train


@pytest.fixture(scope="module")
def whole():
    """A run without interruption."""
    return train()


@pytest.fixture
def full_disk():
    """A context in which no file can grow beyond some bytes: writing more is an OSError, as on a full disk."""

    @contextlib.contextmanager
    def limit(size):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit

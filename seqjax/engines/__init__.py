# SPDX-License-Identifier: Apache-2.0
"""Engines: one way to run a cell over time a file."""

from seqjax.engines.scan import Scan

__all__ = ["Scan"]

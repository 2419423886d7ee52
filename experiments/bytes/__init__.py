# SPDX-License-Identifier: Apache-2.0
"""A byte-level model of source text, trained and judged as one long stream."""

# SPDX-License-Identifier: Apache-2.0
"""One-dimensional digits: classify a sequence of 40 steps."""

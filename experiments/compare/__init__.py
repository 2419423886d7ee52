# SPDX-License-Identifier: Apache-2.0
"""Cells side by side: one task, one budget, several seeds."""

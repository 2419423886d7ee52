# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: one question a file, all competitors side by side in one run."""

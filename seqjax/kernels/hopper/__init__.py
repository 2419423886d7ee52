# SPDX-License-Identifier: Apache-2.0
"""Kernels for the H100 and H200, with Pallas' Mosaic backend: a cluster of blocks keeps the recurrent weights on chip.

`recurrence` runs all steps of a nonlinear cell, with the same interface as Triton's. `tiles` cuts the arrays, `block`
is what one block of the cluster does, `exchange` multiplies, and `cluster` and `registers` have what the backend lacks.
"""

# SPDX-License-Identifier: Apache-2.0
"""Kernels for the H100 and H200, by Pallas' Mosaic backend: a cluster of blocks keeps the recurrent weights on chip.

`recurrence` runs all steps of a nonlinear cell, with the interface of Triton's. `tiles` cuts the arrays, `block` is
what one of the cluster does, `exchange` multiplies, and what the backend lacks is written out in `cluster`.
"""

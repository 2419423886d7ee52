# SPDX-License-Identifier: Apache-2.0
"""Kernels for every NVIDIA GPU and for the interpreter, with Pallas' Triton backend.

`recurrence` runs all steps of a nonlinear cell: a program owns some sequences, and `blocks` cuts the arrays. `linear`
has the diagonal linear recurrence. Everything that depends on the backend is in `launch`.
"""

# SPDX-License-Identifier: Apache-2.0
"""Accelerator kernels, written in Pallas: arrays in, arrays out, no model code.

The backend is Pallas' Triton one. JAX 0.11 deprecates it in favour of Mosaic GPU, which is the one
that will stay; but Mosaic's products on Hopper (`wgmma`) want 64 rows and operands laid out by hand
in shared memory, which nobody should write without a GPU at hand, while Triton's kernels can be
compiled to machine code for an H100 on any machine and run by the interpreter in float64. So all that
depends on the backend is in `launch.py`, and it is imported where a kernel is launched and not before.
"""

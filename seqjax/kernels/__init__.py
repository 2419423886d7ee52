# SPDX-License-Identifier: Apache-2.0
"""Accelerator kernels, written in Pallas: arrays in, arrays out, no model code.

`steps` has one step of each recurrence and its transpose; two kernels run it over all steps:

- `recurrence`, for every NVIDIA GPU and for the interpreter, by Pallas' Triton backend: a program owns some
  sequences, `blocks` cuts the arrays, and what depends on the backend is in `launch`;
- `hopper`, for the H100 and H200, by the Mosaic backend: a cluster of blocks keeps the weights on chip,
  `tiles` cuts the arrays, `block` is what one of the cluster does, `exchange` multiplies, and what the backend
  lacks is written out in `cluster`.

`linear` has the diagonal linear recurrence, by Triton. Backends are imported where a kernel is launched.
"""

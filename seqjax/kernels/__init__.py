# SPDX-License-Identifier: Apache-2.0
"""Accelerator kernels, written in Pallas: arrays in, arrays out, no model code.

`equations` has one step of each recurrence and its transpose; `operands`, what a recurrence takes and returns;
`triton` and `hopper` run it over all steps in one launch. Backends are imported only when a kernel is launched.
"""

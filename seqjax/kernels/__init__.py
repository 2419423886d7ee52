# SPDX-License-Identifier: Apache-2.0
"""Accelerator kernels, written in Pallas: arrays in, arrays out, no model code.

`equations` has one step of each recurrence and its transpose, `operands` what a recurrence is given and leaves;
`triton` and `hopper` run it over all steps in one launch. Backends are imported where a kernel is launched.
"""

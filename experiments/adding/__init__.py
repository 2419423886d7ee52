# SPDX-License-Identifier: Apache-2.0
"""The adding problem: remember two numbers over a long sequence and add them."""

# SPDX-License-Identifier: Apache-2.0
"""Which cells have a GPU kernel, and its derivatives."""

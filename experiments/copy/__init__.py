# SPDX-License-Identifier: Apache-2.0
"""Copy memory: repeat ten symbols after a long pause."""

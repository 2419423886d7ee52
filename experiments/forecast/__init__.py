# SPDX-License-Identifier: Apache-2.0
"""Ten steps ahead, sequence to sequence: at every step of a window, the next ten values."""

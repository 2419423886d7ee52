# SPDX-License-Identifier: Apache-2.0
"""Selective copying: repeat, in order, the symbols that stand at random steps among blanks."""

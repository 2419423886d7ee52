# SPDX-License-Identifier: Apache-2.0
"""What the tests of many subjects share."""

import numpy as np

import seqjax

F64 = seqjax.DTypes("float64")


def sigmoid(x):
    return 1 / (1 + np.exp(-x))

# SPDX-License-Identifier: Apache-2.0
"""What a model of the sequence must beat: a random forest, which knows of a recording no order of its steps."""

import numpy as np

from experiments.watch.data import Recordings

STATE = 0
"""Of the forest's draws. All else is as scikit-learn has it: 100 trees."""


def statistics(signal: np.ndarray) -> np.ndarray:
    """Of each channel of `signal [T, 6]`: mean, standard deviation, minimum, quartiles, maximum; `[42]`."""
    return np.concatenate([signal.mean(0), signal.std(0), *np.quantile(signal, (0, 0.25, 0.5, 0.75, 1), axis=0)])


def accuracy(learnt: Recordings, judged: Recordings) -> float:
    """Of a forest on statistics of whole recordings: trained on some people's, judged by others'.

    Raises:
      ValueError: scikit-learn is not installed.
    """
    try:
        from sklearn.ensemble import RandomForestClassifier
    except ModuleNotFoundError:
        raise ValueError(
            "The random forest that models are compared with needs scikit-learn, which is not installed; "
            "install it with: pip install 'seqjax[watch]'."
        ) from None
    known, unseen = (np.array([statistics(signal) for signal in part.signals]) for part in (learnt, judged))
    forest = RandomForestClassifier(random_state=STATE).fit(known, learnt.labels)
    return float(forest.score(unseen, judged.labels))

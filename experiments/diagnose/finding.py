# SPDX-License-Identifier: Apache-2.0
"""What a finding is, and every threshold from which there is one."""

from typing import Literal, NamedTuple

VANISHED = 0.01
"""A gradient below this part of its largest value has vanished."""
MUCH = 0.5
"""The part of the steps without gradient from which this is a problem; the part of the training steps
clipped, and of a gate's values at a bound, from which they are."""
OFF = 0.9
"""The same of an activation that is only ever at its lower bound, a relu say, which is off half of the time
when all is well."""
EXPLODED = 100.0
"""A gradient that a recurrence makes so many times larger has exploded."""
NEUTRAL = 0.01
"""Lyapunov exponents of this size, in nats per step, neither forget nor amplify."""
RARELY = 0.01
"""The part of the training steps up to which clipping is rare."""

Level = Literal["problem", "note", "good"]


class Finding(NamedTuple):
    """One sentence with its evidence."""

    level: Level
    about: str
    """The layer, or what it is about: `"0 LSTM(20)"`, `"the model"`, `"training"`."""
    sentence: str
    number: str
    """The quantity and its value: what the sentence rests on."""

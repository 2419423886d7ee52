# SPDX-License-Identifier: Apache-2.0
"""Engines: ways to run a cell over time, one per file."""

from seqjax.engines.associative import Associative
from seqjax.engines.auto import Auto
from seqjax.engines.checkpointed import Checkpointed
from seqjax.engines.fused import Fused
from seqjax.engines.linear import linear_recurrence
from seqjax.engines.newton import Newton, newton_solve
from seqjax.engines.relaxed import Relaxed, relaxed_solve
from seqjax.engines.scan import Scan
from seqjax.engines.sharded import Sharded, sharded_solve
from seqjax.engines.solving.convergence import Solution
from seqjax.engines.truncated import Truncated

__all__ = [
    "Associative",
    "Auto",
    "Checkpointed",
    "Fused",
    "Newton",
    "Relaxed",
    "Scan",
    "Sharded",
    "Solution",
    "Truncated",
    "linear_recurrence",
    "newton_solve",
    "relaxed_solve",
    "sharded_solve",
]

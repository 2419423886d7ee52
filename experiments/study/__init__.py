# SPDX-License-Identifier: Apache-2.0
"""What the experiments share: a task, rows of a study, seeds, results that outlast an interruption, a table, a plot."""

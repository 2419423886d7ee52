# SPDX-License-Identifier: Apache-2.0
"""One folder a task: `config.py`, `data.py`, `run.py` and a README with its command and its numbers."""

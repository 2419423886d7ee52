# SPDX-License-Identifier: Apache-2.0
"""One sequence over several processes: the numbers of one."""

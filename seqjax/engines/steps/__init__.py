# SPDX-License-Identifier: Apache-2.0
"""How steps are run one after the other, which the engines share."""

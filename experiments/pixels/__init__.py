# SPDX-License-Identifier: Apache-2.0
"""Images one pixel at a time: what is on them has to be remembered until the last."""

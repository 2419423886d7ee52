# SPDX-License-Identifier: Apache-2.0
"""How the time axis is split over devices."""

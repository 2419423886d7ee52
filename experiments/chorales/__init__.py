# SPDX-License-Identifier: Apache-2.0
"""Four-part music as piano rolls: which notes sound next, given all before them."""

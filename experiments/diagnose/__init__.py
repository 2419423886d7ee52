# SPDX-License-Identifier: Apache-2.0
"""Why a trained model forgets or does not learn: a report on a saved checkpoint."""

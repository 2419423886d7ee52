# SPDX-License-Identifier: Apache-2.0
"""How all steps are solved for at once: residuals, Jacobians, and the iterations of `Relaxed` and `Newton`."""

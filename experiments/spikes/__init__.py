# SPDX-License-Identifier: Apache-2.0
"""The firing of an auditory neuron, predicted from the sound it hears."""

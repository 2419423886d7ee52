# SPDX-License-Identifier: Apache-2.0
"""Smartwatch recordings: which of seven exercises does a person do whom the model has never seen?"""

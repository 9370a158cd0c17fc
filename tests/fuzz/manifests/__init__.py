# SPDX-License-Identifier: Apache-2.0
"""Manifests that are changed at random, and what must hold whatever the parsers are given.

`seeds` has manifests to begin with, `mutate` changes them, `check` says what must hold, and
``python -m tests.fuzz.manifests`` does it for as long as one likes.
"""

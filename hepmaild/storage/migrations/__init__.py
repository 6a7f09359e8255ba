# SPDX-License-Identifier: Apache-2.0
"""Alembic's folder: one revision a file in `versions/`.  A released revision is never changed; `env.py` runs them."""

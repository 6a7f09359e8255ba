# SPDX-License-Identifier: Apache-2.0
"""Makers of pages under docs/ that are read from the source itself; `make docs` runs them, the daemon uses none."""

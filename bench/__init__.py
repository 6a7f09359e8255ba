# SPDX-License-Identifier: Apache-2.0
"""Benchmarks, one command each: `python -m bench`, `python -m bench memory`, `python -m bench http`.

They start the real servers on loopback and print ratios of interleaved runs, because the speed of a machine drifts
while ratios hold.  Nothing here is imported by the daemon.
"""

# SPDX-License-Identifier: Apache-2.0
"""Real programs that tests and benchmarks start: databases, mail servers, mail clients, and the daemon itself.

Each is a context manager that makes its own temporary folder, listens on loopback only, is ready when it enters, and is
gone when it leaves.  What lives here starts programs and looks at what they did; it asserts nothing.
"""

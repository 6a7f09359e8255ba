# SPDX-License-Identifier: Apache-2.0
"""The command line: parses, calls plain functions of `storage` in units, and prints.

`app` holds the top command and the boundary that turns errors into one line and an exit status; `backend` opens the
store; `output` prints; the other modules have a group of commands each.  No rule of the service lives here.
"""

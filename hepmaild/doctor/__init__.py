# SPDX-License-Identifier: Apache-2.0
"""The doctor: tries what the settings promise, and says of each thing what was found and what to do.

`checks` is what a check is and how many run side by side; `examination` puts them together; the others are the checks
themselves.  No check sends mail or changes anything.
"""

# SPDX-License-Identifier: Apache-2.0
"""The pages for people: server-rendered, complete without JavaScript where that is possible.

`frame` is what every page stands in: who is signed in, forms that cannot be forged, templates, headers.  The other
modules are groups of pages.  What the pages show is read by plain functions in `storage/`; nothing here knows SQL.
"""

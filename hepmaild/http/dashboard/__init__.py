# SPDX-License-Identifier: Apache-2.0
"""The pages for people: server-rendered, complete without JavaScript where that is possible.

`frame` is what every page stands in: who is signed in, forms that cannot be forged, templates, headers.  `mount` lists
the groups of pages, a module each; they are helped by `forms` (what is posted), `key_form`, `template_form`, `words`
(figures and times), `charts`, `timeline`, `parts` (of a stored message), `snippets`, `devices` and `assets`.  What the
pages show is read by plain functions in `storage/`; nothing here knows SQL.
"""

// SPDX-License-Identifier: Apache-2.0
// The theme that the reader chose, before anything is drawn: no page is light for a moment where it is to be dark.

{
  const chosen = localStorage.getItem("theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
}

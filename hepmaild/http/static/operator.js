// SPDX-License-Identifier: Apache-2.0
// Parts of a page that are read again by themselves: <div id="…" data-refresh="SECONDS">.
// Not while somebody works in them, and not while nobody sees them.

import { localise } from "./app.js";

async function refresh(part) {
  if (document.hidden || part.contains(document.activeElement)) return;
  let page;
  try {
    const answer = await fetch(location.href, { headers: { Accept: "text/html" }, redirect: "error" });
    if (!answer.ok) throw new Error(String(answer.status));
    page = new DOMParser().parseFromString(await answer.text(), "text/html");
  } catch {
    part.classList.add("stale");
    return;
  }
  const fresh = page.getElementById(part.id);
  if (!fresh || part.contains(document.activeElement)) return;
  const chosen = part.querySelector("[data-line].chosen")?.dataset.id;
  part.replaceChildren(...fresh.childNodes);
  part.classList.remove("stale");
  if (chosen !== undefined) part.querySelector(`[data-line][data-id="${CSS.escape(chosen)}"]`)?.classList.add("chosen");
  localise(part);
}

for (const part of document.querySelectorAll("[data-refresh]")) {
  let busy = false;
  setInterval(async () => {
    if (busy) return;
    busy = true;
    await refresh(part);
    busy = false;
  }, Number(part.dataset.refresh) * 1000);
}

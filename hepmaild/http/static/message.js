// SPDX-License-Identifier: Apache-2.0
// The page of a message, live: read anew whenever something happened to it.

import { localise, tellTime } from "./app.js";
import { READ_MS, connect } from "./live.js";

const page = document.getElementById("message");
const PARTS = ["message-do", "message-story", "message-facts"];

let running = null;
let wanted = false;

function refresh() {
  wanted = true;
  running ??= (async () => {
    let good = true;
    while (wanted) {
      wanted = false;
      good = await read();
    }
    running = null;
    return good;
  })();
  return running;
}

async function read() {
  try {
    const referrer = document.referrer || "about:client"; // the forms hand on which view of the log this page came from
    const answer = await fetch(location.href, { cache: "no-store", referrer, signal: AbortSignal.timeout(READ_MS) });
    if (!answer.ok || answer.redirected) return false;
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    for (const id of PARTS) {
      const old = document.getElementById(id), now = fresh.getElementById(id);
      if (old && now && (id !== "message-do" || deeds(old) !== deeds(now))) put(old, now);
    }
    return true;
  } catch {
    return false;
  }
}

// What can be done now: buttons that stay what they are are left alone, since somebody may be about to press one.
function deeds(part) {
  return [...part.querySelectorAll("form")].map((form) => `${form.action} ${form.querySelector("button").disabled}`).join();
}

function put(old, now) {
  const open = new Set([...old.querySelectorAll("details[open][data-key]")].map((element) => element.dataset.key));
  const before = old.querySelector("[data-state]")?.dataset.state;
  for (const element of now.querySelectorAll("details[data-key]")) element.open = open.has(element.dataset.key);
  for (const button of now.querySelectorAll("button[data-copy]")) button.hidden = false;
  const focus = old.contains(document.activeElement) ? document.activeElement.closest("[data-key]")?.dataset.key : null;
  old.replaceChildren(...now.childNodes);
  localise(old);
  if (focus) old.querySelector(`[data-key="${CSS.escape(focus)}"] summary`)?.focus({ preventScroll: true });
  const large = old.querySelector("[data-state]");
  if (large && large.dataset.state !== before) large.classList.add("flash");
}

// The due time counts down by the second while it is near.
setInterval(() => {
  if (document.hidden) return;
  for (const time of document.querySelectorAll("[data-countdown] time")) {
    const left = Date.parse(time.dateTime) - Date.now();
    time.textContent = left <= 0 ? "now" : tellTime(Date.parse(time.dateTime));
  }
}, 1000);

connect({ query: { message: page.dataset.pageId }, seq: Number(page.dataset.seq), onFrame: refresh, onResync: refresh });

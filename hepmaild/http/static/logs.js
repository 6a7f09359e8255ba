// SPDX-License-Identifier: Apache-2.0
// The log, live: new lines slide in where the reader is at the top, and wait behind a pill where not.

import { localise } from "./app.js";
import { READ_MS, connect } from "./live.js";

const log = document.getElementById("log");
const body = document.getElementById("log-lines");
const pill = document.getElementById("pill");
const table = body.closest("table");
const MOST = 200; // lines on the page
const held = new Map(); // lines that wait behind the pill
let missed = 0; // more than those

const isNewest = log.dataset.newest === "yes";
const isReading = () => log.getBoundingClientRect().top < 0 || !getSelection().isCollapsed
  || body.contains(document.activeElement) || body.querySelector(".chosen") !== null;

function parse(html) {
  const template = document.createElement("template");
  template.innerHTML = html; // made by the server's template, which escapes
  const row = template.content.querySelector("tr");
  localise(row);
  return row;
}

function rowOf(id) { return body.querySelector(`tr[data-id="${CSS.escape(id)}"]`); }

function flash(row) {
  row.classList.remove("flash");
  void row.offsetWidth;
  row.classList.add("flash");
}

function replace(old, row) {
  const changed = old.dataset.state !== row.dataset.state;
  const focused = old.contains(document.activeElement);
  if (old.classList.contains("chosen")) row.classList.add("chosen");
  old.replaceWith(row);
  if (focused) row.querySelector("a")?.focus({ preventScroll: true });
  if (changed) flash(row);
}

// Newest first, by time and then id, as the server sorts them.
function isBefore(row, other) {
  const a = Number(row.dataset.at), b = Number(other.dataset.at);
  return a > b || (a === b && row.dataset.id > other.dataset.id);
}

function insert(row) {
  document.getElementById("log-empty")?.remove();
  table.hidden = false;
  const next = [...body.rows].find((other) => isBefore(row, other)) ?? null;
  if (!next && body.rows.length >= 50) return; // it belongs to an older page
  row.classList.add("slide");
  body.insertBefore(row, next);
  if (body.rows.length > MOST) endWith(body.rows[MOST - 1].dataset.id);
}

function showPill() {
  const count = held.size + missed;
  pill.hidden = count === 0;
  pill.textContent = `${count >= 1000 ? "1000+" : count} new`;
}

function release() {
  if (!isNewest || missed > 0) { location.assign(log.dataset.first); return; }
  const rows = [...held.values()];
  held.clear();
  showPill();
  rows.forEach(insert);
  log.scrollIntoView({ block: "nearest" });
  scrollTo({ top: 0 });
}

function take(line) {
  const row = parse(line.html);
  const old = rowOf(line.id);
  if (old) { replace(old, row); return; }
  const oldest = body.rows[body.rows.length - 1];
  if (oldest && !isBefore(row, oldest) && body.rows.length >= 50) return;
  if (isNewest && !isReading() && held.size === 0) { insert(row); return; }
  if (!isNewest && oldest && !isBefore(row, body.rows[0])) return;
  held.set(line.id, row);
  if (held.size > MOST) { held.delete(held.keys().next().value); missed += 1; }
  showPill();
}

function change([id, state, html, took]) {
  const row = rowOf(id) ?? held.get(id);
  if (!row || row.dataset.state === state) return;
  row.dataset.state = state;
  row.querySelector(".log-state").innerHTML = html; // the server's too
  row.querySelector(".log-ms").textContent = took;
  if (row.isConnected) flash(row);
}

function onFrame(frame) {
  // The oldest first, so that each finds its place above the one before.
  [...frame.lines].reverse().forEach(take);
  frame.changed.forEach(change);
  if (frame.more > 0) closeGap(frame);
}

// More has happened than a frame holds: of what is older than its last line some is missing here.
function closeGap(frame) {
  if (held.size > 0 || missed > 0 || !isNewest || isReading()) {
    missed += frame.more;
    showPill();
    return;
  }
  endWith(frame.lines.at(-1).id, true);
}

// The lines behind this one leave the page, and older ones begin there: nothing lies between.
// isMore: there are some, although they never stood here.
function endWith(id, isMore = false) {
  const last = rowOf(id);
  if (!last || !(isMore || last.nextElementSibling)) return;
  while (last.nextElementSibling) last.nextElementSibling.remove();
  const older = new URL(log.dataset.first, location.href);
  older.searchParams.set("before", `${last.dataset.at}-${id}`);
  const link = document.createElement("a");
  Object.assign(link, { rel: "next", textContent: "Older" });
  link.dataset.older = "";
  document.getElementById("log-all")?.replaceWith(link);
  document.getElementById("log-pages").hidden = false;
  for (const each of document.querySelectorAll("a[data-older]")) each.href = older.href;
}

let running = null;
function onResync() {
  running ??= refresh().finally(() => { running = null; });
  return running;
}

async function refresh() {
  log.setAttribute("aria-busy", "true");
  try {
    const answer = await fetch(location.href, { cache: "no-store", signal: AbortSignal.timeout(READ_MS) });
    if (!answer.ok || answer.redirected) return false;
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const rows = [...page.querySelectorAll("#log-lines > tr")];
    const ids = rows.map((row) => row.dataset.id);
    const isApart = body.rows.length > 0 && ids.length > 0 && !ids.some((id) => rowOf(id) ?? held.get(id));
    rows.reverse().forEach((row) => take({ id: row.dataset.id, html: row.outerHTML }));
    // Between these and what was here some is missing; and what is older may be no more what it was.
    if (isNewest && ids.length > 0) {
      if (held.size === 0 && missed === 0 && !isReading()) endWith(ids.at(-1));
      else if (isApart) { missed += 1; showPill(); }
    }
    return true;
  } catch {
    return false;
  } finally {
    log.removeAttribute("aria-busy");
  }
}

pill.addEventListener("click", release);
addEventListener("scroll", () => { if (held.size && isNewest && !missed && scrollY === 0 && !isReading()) release(); }, { passive: true });
if (log.dataset.live === "yes") connect({ query: log.dataset.q ? { q: log.dataset.q } : {}, seq: Number(log.dataset.seq), onFrame, onResync });

// A click anywhere on a line opens it; the link in it is what keyboards and screen readers use.
body.addEventListener("click", (event) => {
  if (event.target.closest("a") || !getSelection().isCollapsed) return;
  event.target.closest("tr")?.querySelector("a")?.click();
});

// Words of the search, offered while they are typed.
const box = document.getElementById("q");
const offers = document.getElementById("search-offers");
const HINTS = {
  to: "recipient", from: "sender", key: "key's name", status: "state", door: "smtp or http", id: "message id",
  before: "date, or 2h", after: "date, or 2h",
};

function offer() {
  const typed = /(\S*)$/.exec(box.value.slice(0, box.selectionStart ?? box.value.length))[1];
  const [name, value] = typed.includes(":") ? typed.split(/:(.*)/s) : [typed, null];
  let words = [];
  if (value === null) {
    words = box.dataset.fields.split(" ").filter((field) => field.startsWith(name.toLowerCase())).map((field) => [`${field}:`, HINTS[field]]);
  } else if (name === "status" || name === "door") {
    words = (name === "status" ? box.dataset.states : box.dataset.doors).split(" ")
      .filter((word) => word.startsWith(value.toLowerCase()) && word !== value).map((word) => [`${name}:${word} `, ""]);
  }
  offers.replaceChildren(...words.map(([word, hint]) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = word.trim();
    if (hint) {
      const small = document.createElement("span");
      small.className = "quiet";
      small.textContent = ` ${hint}`;
      button.append(small);
    }
    button.addEventListener("click", () => {
      const end = box.selectionStart ?? box.value.length;
      box.setRangeText(word, end - typed.length, end, "end");
      box.focus();
      offer();
    });
    return button;
  }));
  offers.hidden = words.length === 0;
}
box.addEventListener("input", offer);
box.addEventListener("focus", offer);
box.form.addEventListener("focusout", () => setTimeout(() => {
  if (!box.form.contains(document.activeElement) && !offers.contains(document.activeElement)) offers.hidden = true;
}, 150));
if (document.activeElement === box) offer(); // who was faster than this script

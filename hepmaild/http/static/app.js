// SPDX-License-Identifier: Apache-2.0
// What every page does with a script: times in the reader's zone, copying, the theme, the keyboard.
// Nothing here is needed to read a page or to send a form.

const root = document.documentElement;

// Theme: the system's, unless the reader chose; theme.js has set it before the page was drawn.
function isDark() {
  return root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

for (const button of document.querySelectorAll("[data-theme-switch]")) {
  button.hidden = false;
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    localStorage.setItem("theme", root.dataset.theme);
  });
}

// The line above is as high as what it says: what sticks or is scrolled to stands below it.
const topLine = document.querySelector(".top");
if (topLine) new ResizeObserver(() => root.style.setProperty("--top", `${topLine.offsetHeight}px`)).observe(topLine);

// Times: the server writes UTC; here they become the reader's, relative while they are young.
const exact = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
const minute = { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit" };
const near = new Intl.DateTimeFormat(undefined, minute), far = new Intl.DateTimeFormat(undefined, { ...minute, year: "numeric" });
const HALF_A_YEAR_S = 182 * 86400; // further away, a day without its year could be that of another one

export function tellTime(at, now = Date.now()) {
  const past = Math.round((now - at) / 1000);
  const seconds = Math.abs(past);
  const say = (text) => (past >= 0 ? `${text} ago` : `in ${text}`);
  if (seconds < 2) return "now";
  if (seconds < 60) return say(`${seconds} s`);
  if (seconds < 3600) return say(`${Math.floor(seconds / 60)} min`);
  if (seconds < 86400) return say(`${Math.floor(seconds / 3600)} h`);
  return (seconds < HALF_A_YEAR_S ? near : far).format(at);
}

export function localise(within = document) {
  for (const element of within.querySelectorAll("time[datetime]")) {
    const at = Date.parse(element.dateTime);
    if (Number.isNaN(at)) continue;
    if (!element.dataset.utc) {
      element.dataset.utc = element.title;
      element.title = `${exact.format(at)} here, ${element.title}`;
    }
    const text = element.dataset.style === "exact" ? exact.format(at) : tellTime(at);
    if (element.textContent !== text) element.textContent = text;
  }
}
localise();
setInterval(() => { if (!document.hidden) localise(); }, 10_000);
document.addEventListener("visibilitychange", () => { if (!document.hidden) localise(); });

// Copying.
export function toast(text) {
  document.querySelector(".toast")?.remove();
  const box = document.createElement("div");
  box.className = "toast";
  box.setAttribute("role", "status");
  box.textContent = text;
  document.body.append(box);
  setTimeout(() => box.remove(), 1800);
}

export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    toast("Copied");
  } catch {
    toast("The browser did not allow copying");
  }
}
for (const button of document.querySelectorAll("button[data-copy]")) button.hidden = false;
document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-copy]");
  if (button) copy(button.dataset.copy);
});
// The whole of what is shown cut.
document.addEventListener("copy", (event) => {
  const anchor = getSelection()?.anchorNode?.parentElement?.closest(".cut[data-copy]");
  if (!anchor || !anchor.contains(getSelection().focusNode)) return;
  event.clipboardData.setData("text/plain", anchor.dataset.copy);
  event.preventDefault();
});

// A form asks first where it says so: <form data-confirm="…">.
document.addEventListener("submit", (event) => {
  const question = event.target.dataset?.confirm;
  if (question && !confirm(question)) event.preventDefault();
});

// A second click does not send a form again while its answer is under way: that may show a secret, and only once.
const ANSWER_MS = 3000;
const sent = new WeakMap();
document.addEventListener("submit", (event) => {
  const form = event.target;
  if (event.defaultPrevented || form.target || event.submitter?.formTarget) return;
  if (Date.now() - (sent.get(form) ?? -Infinity) < ANSWER_MS) event.preventDefault();
  else sent.set(form, Date.now());
});

// A page that must not be left unread: <body data-leave="…">, until something with data-leave-ok is used.
let guard = document.querySelector("[data-leave]") !== null;
document.addEventListener("click", (event) => { if (event.target.closest("[data-leave-ok]")) guard = false; });
document.addEventListener("change", (event) => { if (event.target.closest("[data-leave-ok]")) guard = !event.target.checked; });
addEventListener("beforeunload", (event) => { if (guard) event.preventDefault(); });

// Keyboard.
const help = document.getElementById("keys-help");
for (const button of document.querySelectorAll("[data-keys-help]")) {
  button.hidden = false;
  button.addEventListener("click", () => help?.showModal());
}

function lines() { return [...document.querySelectorAll("[data-line]")]; }

function choose(step) {
  const all = lines();
  if (!all.length) return;
  const now = all.findIndex((line) => line.classList.contains("chosen"));
  const next = Math.min(Math.max(now + step, 0), all.length - 1);
  if (now >= 0) all[now].classList.remove("chosen");
  all[now < 0 ? 0 : next].classList.add("chosen");
  all[now < 0 ? 0 : next].scrollIntoView({ block: "nearest" });
}

// The bar at the bottom of a small screen holds more than it shows.
const place = document.querySelector(".rail a[aria-current]"), rail = document.querySelector(".rail");
function showPlace() { if (place) rail.scrollLeft = place.offsetLeft - (rail.clientWidth - place.offsetWidth) / 2; }
matchMedia("(max-width: 720px)").addEventListener("change", showPlace);
showPlace();

// Neither do the tabs of a list always fit.
for (const tab of document.querySelectorAll(".tabs a[aria-current]")) {
  const tabs = tab.parentElement;
  tabs.scrollLeft = tab.offsetLeft - tabs.offsetLeft - (tabs.clientWidth - tab.offsetWidth) / 2;
}

// Whether the focus is on nothing that would act on Enter itself.  A dialog keeps it for a moment after it closed.
function nowhere(target) { return target === document.body || target.closest("dialog:not([open])") !== null; }

let wentG = 0;
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.closest("input, textarea, select, [contenteditable]");
  if (typing) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (document.querySelector("dialog[open]")) return;
  if (wentG && Date.now() - wentG < 1200) {
    wentG = 0;
    const link = document.querySelector(`.rail a[data-go="${CSS.escape(event.key)}"]`);
    if (link) { event.preventDefault(); location.assign(link.href); return; }
  }
  const current = document.querySelector("[data-line].chosen");
  switch (event.key) {
    case "/": {
      const search = document.querySelector("input[type=search]");
      if (search) { event.preventDefault(); search.focus(); search.select(); }
      break;
    }
    case "j": choose(1); break;
    case "k": choose(-1); break;
    case "g": wentG = Date.now(); break;
    case "?": help?.showModal(); break;
    case "c": { const id = current?.dataset.id ?? document.querySelector("[data-page-id]")?.dataset.pageId; if (id) copy(id); break; }
    case "Enter": if (current && nowhere(event.target)) current.querySelector("a")?.click(); break;
    case "Escape": {
      const menu = document.querySelector("details.menu[open]"), back = document.querySelector("a[data-back]");
      if (menu) { menu.open = false; menu.querySelector("summary").focus(); }
      else if (back) location.assign(back.href);
      break;
    }
  }
});

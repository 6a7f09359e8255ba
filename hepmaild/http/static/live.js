// SPDX-License-Identifier: Apache-2.0
// The live stream: one websocket, which comes back by itself and goes on where it was.

const dot = document.getElementById("live-state");
const bar = document.getElementById("offline");
const outBar = document.getElementById("signed-out");
const WORDS = { on: "live", wait: "connecting", off: "not live", out: "signed out" };
const SILENCE_MS = 45_000; // the server says something every 20 seconds
export const READ_MS = 30_000; // in which a page is read anew, or is not

let barTimer = 0;

function show(state) {
  if (dot && (dot.hidden || dot.dataset.state !== state)) {
    dot.hidden = false;
    dot.dataset.state = state === "out" ? "off" : state;
    dot.querySelector(".live-word").textContent = WORDS[state];
  }
  clearTimeout(barTimer);
  const lost = state === "wait" || state === "off", out = state === "out";
  // A short gap is not worth a bar.
  barTimer = setTimeout(() => {
    if (bar) bar.hidden = !lost;
    if (outBar) outBar.hidden = !out;
    document.documentElement.classList.toggle("is-offline", lost || out);
  }, lost ? 2500 : 0);
}

// query: what to look at.  seq: from where.  onFrame(frame), onResync(): false, or a promise of it, says that it could
// not be shown; then it is asked for again.
export function connect({ query, seq, onFrame, onResync }) {
  let socket = null;
  let turn = Promise.resolve(); // frames are taken one after the other, also where a page is read anew for one
  let tries = 0;
  let watchdog = 0;
  let timer = 0;
  let isOut = false;

  function listen() {
    clearTimeout(watchdog);
    watchdog = setTimeout(() => socket?.close(), SILENCE_MS);
  }

  function open() {
    clearTimeout(timer);
    show("wait");
    const asked = new URLSearchParams({ ...query, since: String(seq) });
    let opened = false;
    let isBehind = false; // a frame could not be shown: the next connection begins with it
    socket = new WebSocket(`${location.origin.replace(/^http/, "ws")}/live?${asked}`);
    const mine = socket;
    socket.addEventListener("open", () => { opened = true; show("on"); listen(); });
    socket.addEventListener("message", (event) => {
      listen();
      const frame = JSON.parse(event.data);
      if (!frame.hello) turn = turn.catch(() => {}).then(() => take(frame));
    });

    async function take(frame) {
      if (isBehind) return;
      if (!frame.beat) {
        if (await (frame.resync ? onResync() : onFrame(frame)) === false) {
          isBehind = true;
          mine.close();
          return;
        }
        seq = Math.max(seq, frame.seq);
      }
      tries = 0;
    }

    socket.addEventListener("close", (event) => {
      clearTimeout(watchdog);
      if (!opened || event.code === 4401) renew();
      else again();
    });
  }

  // The session may only need a fresh cookie, or be over.
  async function renew() {
    isOut = false;
    try {
      const answer = await fetch("/live/session", { redirect: "manual", cache: "no-store" });
      if (answer.type === "opaqueredirect" || answer.status === 401 || answer.status === 403) { leave(); return; }
    } catch {
      // not even that: the line is down
    }
    again();
  }

  // Who signs in again, here or in another window, finds the page going on.
  function leave() {
    isOut = true;
    const back = new URLSearchParams({ next: location.pathname + location.search });
    outBar?.querySelector("a").setAttribute("href", `/sign-in?${back}`);
    show("out");
  }

  function again() {
    show(navigator.onLine ? "wait" : "off");
    const pause = Math.min(30_000, 400 * 2 ** tries) * (0.6 + 0.4 * Math.random());
    tries += 1;
    timer = setTimeout(open, pause);
  }

  addEventListener("online", () => { if (socket?.readyState === WebSocket.CLOSED) { tries = 0; open(); } });
  addEventListener("offline", () => show("off"));
  document.addEventListener("visibilitychange", () => { if (isOut && !document.hidden) renew(); });
  open();
}

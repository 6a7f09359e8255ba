// SPDX-License-Identifier: Apache-2.0
// The live stream: one websocket, which comes back by itself and goes on where it was.

const dot = document.getElementById("live-state");
const bar = document.getElementById("offline");
const WORDS = { on: "live", wait: "connecting", off: "not live", out: "signed out" };
const SILENCE_MS = 45_000; // the server says something every 20 seconds

let barTimer = 0;

function show(state) {
  if (dot && (dot.hidden || dot.dataset.state !== state)) {
    dot.hidden = false;
    dot.dataset.state = state === "out" ? "off" : state;
    dot.querySelector(".live-word").textContent = WORDS[state];
  }
  clearTimeout(barTimer);
  const lost = state === "wait" || state === "off";
  // A short gap is not worth a bar.
  barTimer = setTimeout(() => {
    if (bar) bar.hidden = !lost;
    document.documentElement.classList.toggle("is-offline", lost);
  }, lost ? 2500 : 0);
}

// query: what to look at.  seq: from where.  onFrame(frame), onResync().
export function connect({ query, seq, onFrame, onResync }) {
  let socket = null;
  let tries = 0;
  let watchdog = 0;
  let timer = 0;

  function listen() {
    clearTimeout(watchdog);
    watchdog = setTimeout(() => socket?.close(), SILENCE_MS);
  }

  function open() {
    clearTimeout(timer);
    show("wait");
    const asked = new URLSearchParams({ ...query, since: String(seq) });
    let opened = false;
    socket = new WebSocket(`${location.origin.replace(/^http/, "ws")}/live?${asked}`);
    socket.addEventListener("open", () => { opened = true; tries = 0; show("on"); listen(); });
    socket.addEventListener("message", async (event) => {
      listen();
      const frame = JSON.parse(event.data);
      if (frame.resync) {
        if (!await onResync()) return;
      } else if (!frame.beat && !frame.hello) {
        onFrame(frame);
      }
      if (frame.seq !== undefined && !frame.hello) seq = Math.max(seq, frame.seq);
    });
    socket.addEventListener("close", (event) => {
      clearTimeout(watchdog);
      if (!opened || event.code === 4401) renew();
      else again();
    });
  }

  // The session may only need a fresh cookie, or be over.
  async function renew() {
    try {
      const answer = await fetch("/live/session", { redirect: "manual", cache: "no-store" });
      if (answer.type === "opaqueredirect" || answer.status === 401 || answer.status === 403) { show("out"); return; }
    } catch {
      // not even that: the line is down
    }
    again();
  }

  function again() {
    show(navigator.onLine ? "wait" : "off");
    const pause = Math.min(30_000, 400 * 2 ** tries) * (0.6 + 0.4 * Math.random());
    tries += 1;
    timer = setTimeout(open, pause);
  }

  addEventListener("online", () => { if (socket?.readyState === WebSocket.CLOSED) { tries = 0; open(); } });
  addEventListener("offline", () => show("off"));
  open();
}

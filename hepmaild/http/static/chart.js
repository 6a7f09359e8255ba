// SPDX-License-Identifier: Apache-2.0
// The chart's times in the reader's zone (days stay UTC days); arrow keys go from column to column.

const time = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const whole = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

for (const element of document.querySelectorAll("[data-chart][data-at]")) {
  const [view, form] = element.dataset.chart.split(" ");
  const at = Date.parse(element.dataset.at);
  if (view === "month" || Number.isNaN(at)) continue;
  element.textContent = (form === "short" ? time : whole).format(at);
  const zone = document.querySelector("[data-zone]");
  if (zone) zone.textContent = "in your time";
}

for (const list of document.querySelectorAll(".plot-columns")) {
  const columns = [...list.children];
  // One stop for the Tab key instead of sixty.
  columns.forEach((column, n) => { column.tabIndex = n === columns.length - 1 ? 0 : -1; });
  list.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    const now = columns.indexOf(document.activeElement);
    if (!step || now < 0) return;
    event.preventDefault();
    const next = Math.min(Math.max(now + step, 0), columns.length - 1);
    columns[now].tabIndex = -1;
    columns[next].tabIndex = 0;
    columns[next].focus();
  });
}

// SPDX-License-Identifier: Apache-2.0
// The preview follows the typing.  The form is sent to a frame of its own, as its button does without a script; each
// time to a new one, which takes the place of the old when it is there: nothing blinks, nothing is added to the history.

const form = document.getElementById("template-form");
const button = form?.querySelector("[data-preview]");
const WAIT_MS = 350;
let timer = 0;
let coming = null;
let turn = 0;

function show() {
  const old = document.getElementById("preview");
  if (!old || coming) {
    timer = setTimeout(show, WAIT_MS);
    return;
  }
  const fresh = old.cloneNode();
  fresh.removeAttribute("src");
  fresh.removeAttribute("id");
  fresh.name = `preview-${(turn += 1)}`;
  fresh.classList.add("preview-coming");
  coming = fresh;
  let sent = false;
  fresh.addEventListener("load", () => {
    if (!sent) return; // the empty page it begins with
    fresh.classList.remove("preview-coming");
    old.remove();
    fresh.id = "preview";
    coming = null;
  });
  old.after(fresh);
  sent = true;
  button.formTarget = fresh.name; // where the button sends it from now on, too
  form.requestSubmit(button);
}

if (form && button) {
  form.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(show, WAIT_MS);
  });
}

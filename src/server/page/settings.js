// System text and sampling, in a dialog; and the colours.

const dialog = document.getElementById("settings");
const form = document.getElementById("settings-form");
const opener = document.getElementById("open-settings");
const fields = () => [...form.elements].filter((field) => field.name !== "");

// Those that were set, by the API's names. `system` is a text, all others are numbers.
export function settings() {
  const out = {};
  for (const field of fields()) {
    const value = field.value.trim();
    if (value === "" || !field.validity.valid) continue;
    out[field.name] = field.name === "system" ? value : Number(value);
  }
  return out;
}

function show_count() {
  const count = Object.keys(settings()).length;
  opener.textContent = count === 0 ? "Settings" : `Settings (${count})`;
}

opener.addEventListener("click", () => dialog.showModal());
form.addEventListener("input", show_count);
form.addEventListener("reset", () => queueMicrotask(show_count));  // when the fields are empty
form.addEventListener("submit", (event) => {
  event.preventDefault();
  dialog.close();
});
close_by_backdrop(dialog);

// A press outside of the panel's box is on the dialog itself.
export function close_by_backdrop(panel) {
  panel.addEventListener("pointerdown", (event) => {
    const box = panel.getBoundingClientRect();
    const inside = event.clientX >= box.left && event.clientX <= box.right &&
      event.clientY >= box.top && event.clientY <= box.bottom;
    if (event.target === panel && !inside) panel.close();
  });
}

// ---- colours ----

const theme = document.getElementById("theme");
const system_dark = matchMedia("(prefers-color-scheme: dark)");
const root = document.documentElement;

function is_dark() {
  return root.dataset.theme ? root.dataset.theme === "dark" : system_dark.matches;
}

function show_theme() {
  theme.setAttribute("aria-pressed", String(is_dark()));
}

theme.addEventListener("click", () => {
  root.dataset.theme = is_dark() ? "light" : "dark";
  try {
    localStorage.setItem("drover-theme", root.dataset.theme);
  } catch {
    // No storage: the choice lasts as long as the page.
  }
  show_theme();
});
system_dark.addEventListener("change", show_theme);
show_theme();
show_count();  // the browser may have kept what was in the fields

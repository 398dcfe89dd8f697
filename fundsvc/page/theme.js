// Not a module: it runs before the first paint, so that the page never flashes in the other theme.
"use strict";

/** Returns the chosen theme, "light" or "dark"; null follows the system. */
function chosenTheme() {
  const theme = localStorage.getItem("theme");
  return theme === "light" || theme === "dark" ? theme : null;
}

/** Applies the chosen theme and sends `themechange`, because charts are drawn in its colours. */
function applyTheme() {
  const theme = chosenTheme();
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
  document.dispatchEvent(new Event("themechange"));
}

applyTheme();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", applyTheme);
document.addEventListener("DOMContentLoaded", () => {
  const button = document.getElementById("theme");
  const show = () => {
    button.textContent = `Theme: ${chosenTheme() ?? "system"}`;
  };
  button.addEventListener("click", () => {
    const next = { null: "dark", dark: "light", light: null }[chosenTheme()];
    if (next) localStorage.setItem("theme", next);
    else localStorage.removeItem("theme");
    applyTheme();
    show();
  });
  show();
});

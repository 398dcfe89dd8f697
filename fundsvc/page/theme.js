// Not a module: it runs before anything is painted, so that a chosen theme never flashes in the other one.
"use strict";

/** The theme that was chosen, "light" or "dark"; null follows the system. */
function chosenTheme() {
  const theme = localStorage.getItem("theme");
  return theme === "light" || theme === "dark" ? theme : null;
}

/** Applies the choice, and tells whoever draws with colours. */
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

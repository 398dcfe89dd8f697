// Swagger UI's own markup has a link within each button, which a keyboard cannot reach. The address still names the open operation.
const plainTitles = ({ React }) => ({
  components: {
    DeepLink: ({ text }) => React.createElement("span", {}, text),
  },
});

// What Swagger UI leaves unnamed or out of reach of the keyboard: attributes by selector.
const MISSING = {
  "h3.opblock-tag": () => ({ "aria-level": 2 }),
  ".modal-ux-header h3": () => ({ "aria-level": 2 }),
  ".close-modal": () => ({ "aria-label": "Close" }),
  ".copy-to-clipboard button": () => ({ "aria-label": "Copy" }),
  h4: () => ({ "aria-level": 3 }),
  h5: () => ({ "aria-level": 4 }),
  "table.responses-table": (table) => ({ "aria-label": `Responses: ${nameOf(table)}, ${table.classList}` }),
  "pre.microlight": () => ({ tabindex: 0 }),
  "tr[data-param-name] :is(select, input, textarea)": (field) => ({
    "aria-label": field.closest("tr").dataset.paramName,
  }),
  "textarea.body-param__text": () => ({ "aria-label": "Body" }),
  "select[aria-label='']": () => ({ "aria-label": "Content type" }),
};

const nameOf = (part) => part.closest(".opblock")?.querySelector(".opblock-summary-path")?.textContent ?? "";

function complete() {
  for (const [selector, attributesOf] of Object.entries(MISSING)) {
    for (const part of document.querySelectorAll(selector)) {
      for (const [name, value] of Object.entries(attributesOf(part))) {
        if (part.getAttribute(name) !== String(value)) part.setAttribute(name, value);
      }
    }
  }
}

new MutationObserver(complete).observe(document.getElementById("description"), { childList: true, subtree: true });

// The validator badge would contact another host. A typed token is not stored.
SwaggerUIBundle({
  url: "../../openapi.json",
  dom_id: "#description",
  plugins: [plainTitles],
  deepLinking: true,
  displayRequestDuration: true,
  docExpansion: "list",
  persistAuthorization: false,
  validatorUrl: null,
});

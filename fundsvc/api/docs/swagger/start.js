// The validator badge would contact another host. A typed token is not stored.
SwaggerUIBundle({
  url: "../../openapi.json",
  dom_id: "#description",
  deepLinking: true,
  displayRequestDuration: true,
  docExpansion: "list",
  persistAuthorization: false,
  validatorUrl: null,
});

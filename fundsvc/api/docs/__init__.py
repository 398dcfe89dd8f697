"""The documentation that the service serves: handbook, OpenAPI document and API reference."""

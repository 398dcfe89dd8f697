"""Serving HTTP: connections, middleware, requests, tokens, limits and errors."""

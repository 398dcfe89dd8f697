"""The HTTP and WebSocket API. Besides `app`, only this package imports aiohttp.

Modules such as `funds`, `adl` and `ingest` define routes and answer them; `answers` and the modules named `..._answers` define
the types of the answers. `http` has what all routes share, `websocket` the live topics, `venues` the paths of other exchanges,
`docs` the documentation.
"""

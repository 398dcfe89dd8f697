"""Live topics over WebSocket, in KuCoin's protocol.

`endpoints` serves the bullet requests and the handshake, `session_tokens` signs and verifies connection tokens. `connection`
handles the messages of one client, `topics` parses its commands, `subscriber` bounds its queue. `balances`,
`entries`, `orders` and `positions` are the topics: each keeps its subscribers, sends them the present state, and then publishes
the changes of the ledger's tail. `frames` encodes messages, `masking` rejects frames without a mask.
"""

"""Live topics, as KuCoin speaks them over WebSocket.

`bullet` hands out where and with what token to connect, `connection` speaks with one client, `client` is what that client is
sent and did not read yet, `topics` reads what it asks for. `balances`, `entries`, `orders` and `positions` each are a topic:
who listens, what they are sent first, and what when the ledger's tail tells something. `frames` makes bytes.
"""

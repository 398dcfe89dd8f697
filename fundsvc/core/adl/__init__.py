"""ADL (auto-deleveraging): the book of positions, ranking, allocation, orders, their sealed records, and verification."""

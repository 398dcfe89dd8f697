"""Building blocks on asyncio: background tasks that fail alone, and exclusive access to data in memory."""

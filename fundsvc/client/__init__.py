"""A client of the service for asyncio: a producer for matching engines, and a reader of the API and its topics.

async with open_api("http://127.0.0.1:8080", token) as api, open_client(StreamConfig(url=url)) as stream:
    async with producing(stream, api) as producer:
        await producer.send(Fill("XBTUSDTM", 1, "sell", 10, "39100", "39000", ts))
        async for announced in producer.rounds():
            await producer.send(*execute(announced))
"""

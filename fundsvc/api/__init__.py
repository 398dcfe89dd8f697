"""The HTTP side: alone in importing aiohttp, with `app`.

`routes` and `deleveraging` list what can be asked and answer it, in the words of `parameters` (questions) and of `answers` and
`adl_answers` (what comes back); `serving` makes an application of them;
`access` stands before it all: `tokens` say who asks, `limits` how often; `ingest` takes engines' events;
`errors` turns exceptions into KuCoin's error envelope, `operations` is what a probe or a scraper asks, `server` listens.
"""

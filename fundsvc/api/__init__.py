"""The HTTP side: alone in importing aiohttp, with `app`.

`routes` lists what can be asked and answers it, in the words of `parameters` (questions) and `answers` (what comes back);
`errors` turns exceptions into KuCoin's error envelope, `operations` is what a probe or a scraper asks, `server` listens.
"""

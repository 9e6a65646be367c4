"""`ganlib serve`: a registered generator over HTTP, with a page to look at it.

| file | what |
|---|---|
| `settings.py` | what a service is told, and the limits on what it may be asked |
| `models.py` | which version is served: it follows its alias, between requests |
| `asked.py` | the bodies of requests |
| `sampling.py`, `batching.py` | what is asked of a generator, many requests in one run of its network |
| `directions.py` | along which inputs samples differ the most |
| `formats.py` | samples as PNG, NumPy, JSON or CSV |
| `api.py` | the routes |
| `guards.py` | what a request meets before a route: size, token, host; metrics |
| `run.py` | Ray Serve: replicas, start, drain |
| `page/` | the page |
"""

"""`ganlib serve`: a registered generator over HTTP, with a page to look at it.

| file | what |
|---|---|
| `settings.py` | the settings of a service, and the limits on requests |
| `models.py` | which version is served: it follows its alias, between requests |
| `schemas.py` | the bodies of requests |
| `sampling.py`, `batching.py` | samples for requests, of many requests in one run of the network |
| `training_data.py` | the training examples, for requests of nearest ones |
| `directions.py` | the changes of the inputs that change samples the most |
| `formats.py` | samples as PNG, NumPy, JSON or CSV |
| `api.py` | the routes |
| `guards.py` | checks before a route: size, token, host; metrics |
| `run.py` | Ray Serve: replicas, start, drain |
| `page/` | the page |
"""

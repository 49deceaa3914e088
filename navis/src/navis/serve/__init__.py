"""An index over HTTP: JSON and binary bodies, metrics, limits, a stop that loses nothing.

`create_app` makes the ASGI application of an open index, `navis serve` runs it. Who writes a client
needs `navis.serve.wire` only, which imports nothing but numpy.
"""

"""Measure a server that speaks OpenAI's interface, whoever wrote it.

::

    work.conversations ─► load.cold_pass ─► http.Client ─► Reply: status, bytes and when they came
                              │  warm_pass                    │
                              │  the very same requests       ▼ answer.read (sse.events)
                              ▼                             Answer or Failure
                         report.as_json ─► cli: a table, or JSON

A run is two passes of the same requests. Every text begins with a word that no run had before, so the first pass is
cold, whatever the server keeps of earlier ones; the second one finds what the server kept of the first.
"""

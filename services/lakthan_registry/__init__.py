"""The registry: how CAs feed the store, and nobody else can.

syntax and core read CRLs and issued lists (values in, values out); `service` and `app` are the HTTPS door for the CAs,
best read as `api`, `app`, `identity`, `service`; `sources` fetches what CAs only publish; `monitor` compares what they
publish with what the responders answer.
"""

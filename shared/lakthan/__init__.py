"""What every Lakthan service shares: ASN.1, keys, the store, telemetry and the web front.

Nothing here knows a service. Read in this order: `errors`, `der`, `algorithms`, `identity`, then the rooms
`keys`, `store`, `telemetry` and `web`.
"""

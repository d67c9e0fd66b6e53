"""A time-stamp client for people: ask any authority, look into requests, responses and tokens, verify tokens.

Read in this order: `imprint`, `request` (what is asked), `message` (what comes back), `transport`, `stamp` (asking),
`checks`, `cms_signature`, `revocation` (what a token is worth), `files` (how tokens are kept), `tree`, `render` (saying
it). Nothing here shares a line with the authority: tokens go through asn1crypto and pyca/cryptography, so that the
client can judge the service. What is the same for every certificate and every signature comes from `lakthan_cli.ocsp`.
"""

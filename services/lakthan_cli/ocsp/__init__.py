"""An OCSP client for people: ask any responder, look into messages, verify answers.

Read in this order: `certificate`, `message`, `extensions`, `signature` (what is there), `trust`, `checks` (what it is
worth), `request`, `transport`, `query` (asking), `tree`, `render` (saying it). Nothing here shares a line with the
responder: messages go through asn1crypto and pyca/cryptography, so that the client can judge the service.
"""

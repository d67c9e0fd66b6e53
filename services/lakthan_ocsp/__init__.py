"""The OCSP responder (RFC 6960, RFC 9919, RFC 9654). Read it in the order in which a request goes through it:

- `quick`: the short way, from the wire's octets to octets; `app`: HTTP in, HTTP out; `get_request`: octets out of a GET
  target;
- `service`: one request's way; `cache`: what may be said again; `this_second`: what was just said; `nonces`: answers
  that lack nothing but their nonce;
- `syntax`: an OCSPRequest out of octets; `usual_request`: the same, quickly, for nearly all;
  `requestors`: whose signed requests are taken;
- `directory`: which responder may answer; `profiles` and `governor`: by which rules, and how long an answer is worth;
- `statuses`: what is said of one certificate; `responder`: what is signed, and the finished octets;
- `metrics`: what operators see; `opening` and `__main__`: wiring.
"""

"""The OCSP responder (RFC 6960, RFC 9919, RFC 9654). Read it in the order in which a request goes through it:

- `app`: HTTP in, HTTP out; `get_request`: octets out of a GET target;
- `service`: one request's way; `cache`: answers that may be given again;
- `syntax`: an OCSPRequest out of octets; `requestors`: whose signed requests are taken;
- `directory`: which responder may answer; `profiles` and `governor`: by which rules, and how long an answer is worth;
- `statuses`: what is said of one certificate; `responder`: what is signed, and the finished octets;
- `metrics`: what operators see; `opening` and `__main__`: wiring.
"""

"""The OCSP responder (RFC 6960, RFC 9919, RFC 9654). Read it in the order in which a request goes through it:

get_request   octets out of a GET target            app        HTTP in, HTTP out
syntax        OCSPRequest out of octets             service    one request's way: cache, store, signer
responder     what is signed, and the answer        cache      answers that may be given again
freshness     how long an answer is worth           metrics    what operators see
                                                    __main__   wiring
"""

"""The time-stamp authority (RFC 3161, RFC 5816). Read it in the order in which a request goes through it:

app           HTTP in, HTTP out                     authority  the token: what is signed, and the finished octets
syntax        TimeStampReq out of octets            recorder   no token leaves before its record is durable
service       one request's way                     metrics    what operators see
clock_guard   may this instant be stamped?          unit       may this certificate stamp, and how long?
serials       numbers that never repeat             __main__   wiring
"""

"""The publisher signs answers ahead, so that the load of a key is certificates ÷ refresh interval and not requests.

    schedule    when an answer is due, what that costs a key, and how fast it may be asked
    voice       what is said of a certificate, as octets to sign
    work        what to sign next
    presigner   the loop of one authority: look, sign, put on record
    static      the same answers as files, for nginx or a CDN

Responders give out what it has put into `published_answer`; none of them needs a key for that.
"""

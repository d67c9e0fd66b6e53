"""The store: PostgreSQL, one implementation, narrow readers and writers with their SQL beside them.

`records` are the values. `pool` opens connections that act as a service's limited role. `status` reads, `changes`
writes, `feed` tells of every change, `tokens` keeps the record of timestamps. `migrate` brings the schema up to date;
`embedded` runs a private server where no other is given.

Who may do what is in the schema: OCSP-78, OCSP-94.
"""

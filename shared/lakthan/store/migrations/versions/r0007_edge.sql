-- What a copy of this database needs: a keyless responder there, and a logical subscriber.

-- A responder beside a copy hears no notification: it looks where the audit chains end, and asks changes_after() what
-- came since. Of the records it may see their numbers only.
GRANT SELECT (chain, number) ON audit_record TO lakthan_responder;
CREATE POLICY responder ON audit_record FOR SELECT TO lakthan_responder USING (true);

-- These have no primary key, because their rows do not fit into an index entry. Once a publication names them, a row
-- that is taken away must be told to the subscriber by all of its columns, or PostgreSQL refuses to take it away.
ALTER TABLE authority_name REPLICA IDENTITY FULL;
ALTER TABLE authority_key REPLICA IDENTITY FULL;
ALTER TABLE authority_certificate REPLICA IDENTITY FULL;

-- Answers that a publisher signs ahead, so that responders need no key; and a heartbeat, by which a copy of this database
-- knows how old it is.
--
-- They lie in published_answer beside those of ceremonies and are given out by the same rule: never one whose
-- certificate has changed since (status_version). Unlike those they are replaced all the time, so a row has an instant at
-- which it is due, its predecessor goes in the same statement, and no single one is in the audit chain.

-- ---------------------------------------------------------------------------------------------------------------
-- Who signs ahead acts as lakthan_presigner, and may do only this.

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'lakthan_presigner') THEN
        BEGIN
            CREATE ROLE lakthan_presigner NOLOGIN;
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL;  -- another database of the server was faster
        END;
    END IF;
END
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- Which answers are due

-- When the answer is to be signed anew; null for those of a ceremony.
ALTER TABLE published_answer ADD COLUMN due_at timestamptz CONSTRAINT due_at_is_finite CHECK (isfinite(due_at));
CREATE INDEX published_answer_due ON published_answer (authority_id, due_at) WHERE due_at IS NOT NULL;
-- Every row is replaced once in each refresh interval: tidy up while there is little to tidy up.
ALTER TABLE published_answer SET (autovacuum_vacuum_scale_factor = 0.02);
CREATE INDEX published_answer_of_ceremony ON published_answer (authority_id) WHERE due_at IS NULL;

-- For whose certificates an answer is on its way when there is none yet: those of an authority whose answers are signed
-- ahead, under these hashes, and those that have expired only where they are kept.
CREATE TABLE presigned_authority (
    authority_id    integer PRIMARY KEY REFERENCES authority ON DELETE CASCADE,
    cert_id_hashes  text[] NOT NULL CONSTRAINT cert_id_hashes_are_known CHECK (
                        cardinality(cert_id_hashes) > 0
                        AND cert_id_hashes <@ ARRAY['SHA-1', 'SHA-224', 'SHA-256', 'SHA-384', 'SHA-512']),
    keep_expired    boolean NOT NULL
);
CREATE CONSTRAINT TRIGGER audit_row AFTER INSERT OR UPDATE OR DELETE ON presigned_authority
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION audit_row('policy');

-- From a record of the audit chain to the changes that it seals. Rows of one batch lie together, so this is enough.
CREATE INDEX status_change_batch ON status_change USING brin (batch) WITH (pages_per_range = 16, autosummarize = on);
CREATE INDEX bulk_change_batch ON bulk_change USING brin (batch) WITH (pages_per_range = 16, autosummarize = on);

-- ---------------------------------------------------------------------------------------------------------------
-- Signing ahead

-- The answers of this authority are signed ahead from now on. LK011: a ceremony has signed answers that still hold.
CREATE FUNCTION presign_authority(of_authority integer, hashes text[], keeps_expired boolean) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    IF EXISTS (SELECT FROM published_answer p
                WHERE p.authority_id = of_authority AND p.due_at IS NULL AND p.next_update > now()) THEN
        RAISE EXCEPTION USING ERRCODE = 'LK011',
            MESSAGE = format('the answers of authority %s come from ceremonies, and some still hold', of_authority);
    END IF;
    INSERT INTO presigned_authority AS a (authority_id, cert_id_hashes, keep_expired)
        VALUES (of_authority, hashes, keeps_expired)
        ON CONFLICT (authority_id) DO UPDATE
           SET (cert_id_hashes, keep_expired) = (excluded.cert_id_hashes, excluded.keep_expired)
         WHERE (a.cert_id_hashes, a.keep_expired) IS DISTINCT FROM (excluded.cert_id_hashes, excluded.keep_expired);
END
$$;

-- Put signed answers in the place of those before. Gives the numbers, from 1, of those that were not taken, because their
-- certificate has changed since its status was read. No row is locked: a change that comes in at the same moment makes
-- the new row outdated as it does an old one.
CREATE FUNCTION put_presigned(of_authority integer, serial_numbers bytea[], hashes text[], produced timestamptz[],
                              begins timestamptz[], ends timestamptz[], due timestamptz[], cert_statuses cert_status[],
                              status_versions bigint[], responses bytea[]) RETURNS bigint[]
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    refused bigint[];
BEGIN
    IF NOT EXISTS (SELECT FROM presigned_authority a WHERE a.authority_id = of_authority) THEN
        RAISE EXCEPTION USING ERRCODE = 'LK011',
            MESSAGE = format('the answers of authority %s are not signed ahead', of_authority);
    END IF;
    WITH asked AS (
        SELECT a.* FROM unnest(serial_numbers, hashes, produced, begins, ends, due, cert_statuses, status_versions,
                               responses)
            WITH ORDINALITY AS a (serial_number, cert_id_hash, produced_at, this_update, next_update, due_at,
                                  cert_status, status_version, response, number)
    ), current AS (
        SELECT a.* FROM asked a JOIN certificate_status s
            ON s.authority_id = of_authority AND s.serial_number = a.serial_number AND s.version = a.status_version
    ), gone AS (
        DELETE FROM published_answer p USING current c
         WHERE p.authority_id = of_authority AND p.serial_number = c.serial_number
           AND p.cert_id_hash = c.cert_id_hash AND p.this_update <> date_trunc('second', c.this_update)
           AND p.due_at IS NOT NULL
    ), put AS (
        INSERT INTO published_answer AS p (authority_id, serial_number, cert_id_hash, produced_at, this_update,
                                           next_update, due_at, cert_status, status_version, response)
        SELECT of_authority, c.serial_number, c.cert_id_hash, c.produced_at, date_trunc('second', c.this_update),
               c.next_update, c.due_at, c.cert_status, c.status_version, c.response FROM current c
        ON CONFLICT (authority_id, serial_number, cert_id_hash, this_update) DO UPDATE
           SET (produced_at, next_update, due_at, cert_status, status_version, response, published_at)
             = (excluded.produced_at, excluded.next_update, excluded.due_at, excluded.cert_status,
                excluded.status_version, excluded.response, excluded.published_at)
         WHERE p.due_at IS NOT NULL AND p.status_version <= excluded.status_version
    )
    SELECT array_agg(a.number) INTO refused FROM asked a LEFT JOIN current c USING (number) WHERE c.number IS NULL;
    RETURN coalesce(refused, '{}');
END
$$;

-- Take answers away that are not to be signed anew. Those of ceremonies stay.
CREATE FUNCTION drop_presigned(of_authority integer, serial_numbers bytea[], hashes text[]) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
BEGIN ATOMIC
    DELETE FROM published_answer p USING unnest(serial_numbers, hashes) AS a (serial_number, cert_id_hash)
     WHERE p.authority_id = of_authority AND p.serial_number = a.serial_number AND p.cert_id_hash = a.cert_id_hash
       AND p.due_at IS NOT NULL;
END;

-- What has changed since a record of an authority's audit chain, in the order of the commits: one row for each certificate,
-- or one row without a serial number for what is no change of statuses, or of more of them than `most`. `at`: shortly
-- before the commit, by the database's clock.
CREATE FUNCTION changes_after(of_authority integer, after_number bigint, most bigint)
    RETURNS TABLE (number bigint, at timestamptz, event text, change_count bigint, serial_number bytea,
                   change change_kind)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
BEGIN ATOMIC
    SELECT r.number, r.at, r.event, r.change_count, c.serial_number, c.change
      FROM (SELECT a.* FROM audit_record a WHERE a.chain = of_authority AND a.number > after_number
             ORDER BY a.number LIMIT 1000) AS r
      LEFT JOIN LATERAL (SELECT s.serial_number, s.change FROM status_change s
                          WHERE s.batch = r.batch AND s.authority_id = of_authority AND r.change_count <= most) AS c ON true
     ORDER BY r.number;
END;

-- ---------------------------------------------------------------------------------------------------------------
-- The heartbeat

-- One row: the last instant at which a publisher was alive. A copy of this database that shows it is not older. It has no row
-- until the first beat.
CREATE TABLE heartbeat (
    one  boolean PRIMARY KEY DEFAULT true CONSTRAINT one_row_only CHECK (one),
    at   timestamptz NOT NULL
) WITH (fillfactor = 10);

CREATE FUNCTION beat() RETURNS timestamptz
    LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
BEGIN ATOMIC
    INSERT INTO heartbeat (at) VALUES (clock_timestamp())
        ON CONFLICT (one) DO UPDATE SET at = excluded.at RETURNING at;
END;

-- ---------------------------------------------------------------------------------------------------------------
-- Rights

REVOKE EXECUTE ON FUNCTION presign_authority(integer, text[], boolean),
    put_presigned(integer, bytea[], text[], timestamptz[], timestamptz[], timestamptz[], timestamptz[], cert_status[],
                  bigint[], bytea[]),
    drop_presigned(integer, bytea[], text[]), changes_after(integer, bigint, bigint), beat() FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO lakthan_presigner;
GRANT EXECUTE ON FUNCTION presign_authority(integer, text[], boolean),
    put_presigned(integer, bytea[], text[], timestamptz[], timestamptz[], timestamptz[], timestamptz[], cert_status[],
                  bigint[], bytea[]),
    drop_presigned(integer, bytea[], text[]), beat() TO lakthan_presigner;
GRANT EXECUTE ON FUNCTION changes_after(integer, bigint, bigint)
    TO lakthan_presigner, lakthan_responder, lakthan_registry;

GRANT SELECT ON authority, authority_name, authority_key, authority_certificate, authority_crl, certificate_status,
    published_answer TO lakthan_presigner;
GRANT SELECT (chain, number) ON audit_head TO lakthan_presigner, lakthan_responder;
GRANT SELECT ON presigned_authority, heartbeat
    TO lakthan_presigner, lakthan_responder, lakthan_registry, lakthan_registrar, lakthan_auditor;

DO $$
DECLARE
    open_to_all text;
BEGIN
    FOREACH open_to_all IN ARRAY ARRAY['authority', 'authority_name', 'authority_key', 'authority_certificate',
            'authority_crl', 'certificate_status', 'published_answer', 'audit_head'] LOOP
        EXECUTE format('CREATE POLICY presigner ON %I FOR SELECT TO lakthan_presigner USING (true)', open_to_all);
    END LOOP;
END
$$;
CREATE POLICY responder ON audit_head FOR SELECT TO lakthan_responder USING (true);

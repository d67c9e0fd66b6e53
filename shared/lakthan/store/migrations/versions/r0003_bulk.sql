-- Many statuses at once: CRLs and issued lists.
--
-- Rows come by COPY into a table that lives as long as the transaction, and are compared and applied as sets:
--   open_bulk() → COPY → plan_crl() or plan_issued() → for a CRL record_crl() → apply_plan(), all in one transaction.
-- What holds for a single change holds here: only who may act for the authority, a revocation is final, each row of
-- certificate_status is locked before its version is drawn, and one audit record seals what a statement changed.

-- ---------------------------------------------------------------------------------------------------------------
-- A reference is checked once for each statement: for each row it costs more than everything else of an import.

ALTER TABLE certificate_status DROP CONSTRAINT certificate_status_authority_id_fkey;
ALTER TABLE status_change DROP CONSTRAINT status_change_authority_id_fkey;

CREATE FUNCTION authority_has_no_statuses() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    IF EXISTS (SELECT FROM certificate_status s WHERE s.authority_id = OLD.id) THEN
        RAISE EXCEPTION USING ERRCODE = 'foreign_key_violation',
            MESSAGE = format('authority %s has certificates on record; it stays', OLD.id);
    END IF;
    RETURN OLD;
END
$$;
CREATE TRIGGER has_no_statuses BEFORE DELETE ON authority
    FOR EACH ROW EXECUTE FUNCTION authority_has_no_statuses();

-- ---------------------------------------------------------------------------------------------------------------
-- What CRLs an authority's statuses come from

-- One row for each issuingDistributionPoint of an issuer ('' when its CRLs are about everything): the newest CRL.
-- complete_number: of the last complete CRL, null when it had none; delta CRLs since then have moved crl_number on.
CREATE TABLE crl_scope (
    id                integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    authority_id      integer NOT NULL REFERENCES authority ON DELETE CASCADE,
    scope             bytea NOT NULL,
    crl_number        serial_number,
    complete_number   serial_number,
    this_update       timestamptz(0) NOT NULL,
    next_update       timestamptz(0) NOT NULL,
    crl_sha256        bytea NOT NULL CONSTRAINT crl_sha256_is_a_sha256 CHECK (octet_length(crl_sha256) = 32),
    complete_entries  bigint NOT NULL,
    url               text,
    actor             text NOT NULL CONSTRAINT crl_has_an_actor CHECK (btrim(actor) <> ''),
    imported_at       timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT crl_ends_after_it_begins CHECK (next_update > this_update)
);
CREATE UNIQUE INDEX crl_scope_once ON crl_scope (authority_id, sha256(scope));

-- Whose certificates a scope has ever listed: the issuer's, and with an indirect CRL those of other authorities.
CREATE TABLE crl_scope_authority (
    crl_scope     integer NOT NULL REFERENCES crl_scope ON DELETE CASCADE,
    authority_id  integer NOT NULL REFERENCES authority ON DELETE CASCADE,
    PRIMARY KEY (crl_scope, authority_id)
);

-- The certificates that the newest CRL of a scope holds: one that leaves the list is released.
CREATE TABLE crl_hold (
    crl_scope      integer NOT NULL REFERENCES crl_scope ON DELETE CASCADE,
    authority_id   integer NOT NULL REFERENCES authority ON DELETE CASCADE,
    serial_number  serial_number NOT NULL,
    PRIMARY KEY (authority_id, serial_number, crl_scope)
);

CREATE CONSTRAINT TRIGGER audit_row AFTER INSERT OR UPDATE OR DELETE ON crl_scope
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION audit_row('crl');

-- ---------------------------------------------------------------------------------------------------------------
-- Staging

-- The tables belong to the schema's owner and the caller may only insert into the first one. That a table of these
-- names is the owner's is checked before each use: nobody slips one of his own under the functions.
CREATE FUNCTION open_bulk(of_authority_id integer) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp SET client_min_messages = 'warning'
AS $$
BEGIN
    PERFORM demand_may_act_for(of_authority_id);
    PERFORM pg_advisory_xact_lock(x'62756c6b'::integer, of_authority_id);  -- one import of an authority at a time
    CREATE TEMP TABLE staged_entry (
        authority_id        integer NOT NULL,
        serial_number       serial_number NOT NULL,
        revocation_time     timestamptz,
        revocation_reason   smallint,
        invalidity_date     timestamptz,
        not_after           timestamptz,
        certificate_sha256  bytea
    ) ON COMMIT DROP;
    CREATE TEMP TABLE planned_change (
        authority_id        integer NOT NULL,
        serial_number       serial_number NOT NULL,
        change              change_kind,  -- null: the list contradicts what is on record, which stays
        revocation_time     timestamptz(0),
        revocation_reason   smallint,
        invalidity_date     timestamptz(0),
        not_after           timestamptz(0),
        certificate_sha256  bytea,
        previous_version    bigint,
        version             bigint NOT NULL DEFAULT nextval('status_version')
    ) ON COMMIT DROP;
    GRANT INSERT ON staged_entry TO lakthan_registry, lakthan_publisher;
END
$$;

CREATE FUNCTION demand_own_tables() RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    IF (SELECT count(*) FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner
         WHERE c.relnamespace = pg_my_temp_schema() AND c.relname IN ('staged_entry', 'planned_change')
           AND c.relkind = 'r' AND r.rolname = current_user) <> 2 THEN
        RAISE EXCEPTION USING ERRCODE = 'LK002', MESSAGE = 'nothing is staged: call open_bulk first';
    END IF;
END
$$;

-- How many entries of each authority are staged; the caller must be allowed to act for every one of them.
CREATE FUNCTION staged_authorities() RETURNS TABLE (authority_id integer, entries bigint)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    PERFORM demand_own_tables();
    FOR authority_id, entries IN SELECT e.authority_id, count(*) FROM pg_temp.staged_entry e GROUP BY 1 ORDER BY 1 LOOP
        PERFORM demand_may_act_for(authority_id);
        RETURN NEXT;
    END LOOP;
END
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- Comparing: what would change?

-- The entries of a CRL. A revocation is final, so one that is on record is only compared: another reason is counted.
-- Only holds are undone: by removeFromCRL (8) in a delta CRL, or by leaving the complete CRL of the scope that held it.
-- A hold that was made otherwise, after this CRL was, stays; and so does one that another scope's CRL still holds.
CREATE FUNCTION plan_crl(of_authority_id integer, of_scope bytea, is_delta boolean, issued_at timestamptz)
    RETURNS TABLE (entries bigint, revoked bigint, held bigint, released bigint, reason_changed bigint, vanished bigint)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp SET timezone = 'UTC'
    SET work_mem = '96MB' SET hash_mem_multiplier = 1
AS $$
DECLARE
    scope_id integer;
BEGIN
    PERFORM demand_may_act_for(of_authority_id);
    SELECT coalesce(sum(a.entries), 0) INTO entries FROM staged_authorities() a;
    SELECT c.id INTO scope_id FROM crl_scope c WHERE c.authority_id = of_authority_id AND c.scope = of_scope;
    ANALYZE pg_temp.staged_entry;

    -- In the order of the serial number, so that they go into the indexes side by side. Of a sort, only the first key is
    -- compared fast.
    INSERT INTO pg_temp.planned_change
        SELECT e.authority_id, e.serial_number,
               CASE WHEN s.cert_status = 'revoked' AND s.revocation_reason IS DISTINCT FROM 6 THEN NULL
                    WHEN e.revocation_reason = 6 THEN 'hold' ELSE 'revoke' END::change_kind,
               least(e.revocation_time, issued_at), e.revocation_reason, e.invalidity_date, s.not_after,
               s.certificate_sha256, s.version
          FROM pg_temp.staged_entry e LEFT JOIN certificate_status s USING (authority_id, serial_number)
         WHERE e.revocation_reason IS DISTINCT FROM 8
           AND (s.version IS NULL OR s.cert_status = 'good'
                OR coalesce(s.revocation_reason, 0) <> coalesce(e.revocation_reason, 0))
         ORDER BY e.serial_number, e.authority_id;

    IF scope_id IS NOT NULL THEN
        INSERT INTO pg_temp.planned_change
            SELECT s.authority_id, s.serial_number, 'unhold', NULL, NULL, NULL, s.not_after, s.certificate_sha256, s.version
              FROM (SELECT h.authority_id, h.serial_number FROM crl_hold h
                     WHERE h.crl_scope = scope_id AND NOT is_delta AND NOT EXISTS (
                           SELECT FROM pg_temp.staged_entry e
                            WHERE e.authority_id = h.authority_id AND e.serial_number = h.serial_number)
                    UNION
                    SELECT e.authority_id, e.serial_number FROM pg_temp.staged_entry e
                     WHERE e.revocation_reason = 8) AS gone
              JOIN certificate_status s USING (authority_id, serial_number)
              JOIN status_change c ON c.version = s.version
             WHERE s.revocation_reason = 6 AND (c.crl_scope = scope_id OR c.recorded_at < issued_at)
               AND NOT EXISTS (SELECT FROM crl_hold h WHERE h.authority_id = s.authority_id
                                  AND h.serial_number = s.serial_number AND h.crl_scope <> scope_id)
             ORDER BY s.serial_number, s.authority_id;
        IF NOT is_delta THEN
            SELECT count(*) INTO vanished
              FROM certificate_status s JOIN status_change c ON c.version = s.version
             WHERE s.cert_status = 'revoked' AND s.revocation_reason IS DISTINCT FROM 6 AND c.crl_scope = scope_id
               AND s.authority_id IN (SELECT a.authority_id FROM crl_scope_authority a WHERE a.crl_scope = scope_id)
               AND (s.not_after IS NULL OR s.not_after > issued_at)
               AND NOT EXISTS (SELECT FROM pg_temp.staged_entry e
                                WHERE e.authority_id = s.authority_id AND e.serial_number = s.serial_number);
        END IF;
    END IF;
    vanished := coalesce(vanished, 0);
    SELECT count(*) FILTER (WHERE p.change = 'revoke'), count(*) FILTER (WHERE p.change = 'hold'),
           count(*) FILTER (WHERE p.change = 'unhold'), count(*) FILTER (WHERE p.change IS NULL)
      INTO revoked, held, released, reason_changed FROM pg_temp.planned_change p;
    RETURN NEXT;
END
$$;

-- The certificates of a list, good ones and revoked ones. What is on record in other words stays: it is counted and
-- some of it is named.
CREATE FUNCTION plan_issued(of_authority_id integer)
    RETURNS TABLE (entries bigint, issued bigint, revoked bigint, held bigint, contradicting bigint, examples bytea[])
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp SET timezone = 'UTC'
    SET work_mem = '96MB' SET hash_mem_multiplier = 1
AS $$
DECLARE
    wrong record;
BEGIN
    PERFORM demand_may_act_for(of_authority_id);
    SELECT coalesce(sum(a.entries), 0) INTO entries FROM staged_authorities() a;
    ANALYZE pg_temp.staged_entry;
    SELECT e.serial_number, e.revocation_time, e.revocation_reason INTO wrong FROM pg_temp.staged_entry e
     WHERE date_trunc('second', e.revocation_time) > clock_timestamp()
        OR e.revocation_reason NOT IN (0, 1, 2, 3, 4, 5, 6, 9, 10) LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'LK002',
            MESSAGE = format('serial number %s of authority %s: %s', encode(wrong.serial_number, 'hex'), of_authority_id,
                CASE WHEN wrong.revocation_time > clock_timestamp()
                     THEN format('the revocation time %s lies in the future', wrong.revocation_time)
                     ELSE format('%s is no reason for a revocation', wrong.revocation_reason) END);
    END IF;

    INSERT INTO pg_temp.planned_change
        SELECT e.authority_id, e.serial_number,
               CASE WHEN s.version IS NOT NULL AND (e.revocation_time IS NULL OR s.cert_status = 'revoked' AND (
                              s.revocation_reason IS DISTINCT FROM 6 OR e.revocation_reason = 6)) THEN NULL
                    WHEN e.revocation_time IS NULL THEN 'issue'
                    WHEN e.revocation_reason = 6 THEN 'hold' ELSE 'revoke' END::change_kind,
               e.revocation_time, e.revocation_reason, e.invalidity_date, coalesce(s.not_after, e.not_after),
               coalesce(s.certificate_sha256, e.certificate_sha256), s.version
          FROM (SELECT t.authority_id, t.serial_number, date_trunc('second', t.revocation_time) AS revocation_time,
                       t.revocation_reason, date_trunc('second', t.invalidity_date) AS invalidity_date,
                       date_trunc('second', t.not_after) AS not_after, t.certificate_sha256
                  FROM pg_temp.staged_entry t) AS e
          LEFT JOIN certificate_status s USING (authority_id, serial_number)
         WHERE s.version IS NULL
            OR (s.cert_status = 'revoked') <> (e.revocation_time IS NOT NULL)
            OR e.not_after <> s.not_after OR e.certificate_sha256 <> s.certificate_sha256
            OR coalesce(s.revocation_reason, 0) <> coalesce(e.revocation_reason, 0)
            OR s.revocation_reason IS DISTINCT FROM 6 AND e.revocation_time <> s.revocation_time
         ORDER BY e.serial_number, e.authority_id;
    SELECT count(*) FILTER (WHERE p.change = 'issue'), count(*) FILTER (WHERE p.change = 'revoke'),
           count(*) FILTER (WHERE p.change = 'hold'), count(*) FILTER (WHERE p.change IS NULL),
           (array_agg(p.serial_number) FILTER (WHERE p.change IS NULL))[1:10]
      INTO issued, revoked, held, contradicting, examples FROM pg_temp.planned_change p;
    RETURN NEXT;
END
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- Applying

-- The versions were drawn while planning, before the rows are locked. That is as good as after it: a row whose version
-- is another one by now is not changed, and who changes it after this draws a greater one.
-- Gives the greatest version, null when nothing changed. SQLSTATE 40001: somebody else changed one of these
-- certificates meanwhile; plan again. LK008: the list contradicts itself.
CREATE FUNCTION apply_plan(of_authority_id integer, who text, of_crl_scope integer) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp SET timezone = 'UTC'
    SET work_mem = '96MB' SET hash_mem_multiplier = 1 SET lakthan.by_function = 'on'
AS $$
DECLARE
    planned bigint;
    fresh   bigint;
    known   bigint;
    newest  bigint;
    twice   bytea;
BEGIN
    PERFORM demand_may_act_for(of_authority_id);
    PERFORM demand_own_tables();
    SELECT count(*), count(p.previous_version), max(p.version) INTO planned, known, newest
      FROM pg_temp.planned_change p WHERE p.change IS NOT NULL;
    IF planned = 0 THEN
        RETURN NULL;
    END IF;
    IF known > 0 THEN
        PERFORM FROM certificate_status s JOIN pg_temp.planned_change p USING (authority_id, serial_number)
          WHERE p.change IS NOT NULL AND p.previous_version IS NOT NULL
          ORDER BY s.authority_id, s.serial_number FOR UPDATE OF s;
        IF EXISTS (SELECT FROM certificate_status s JOIN pg_temp.planned_change p USING (authority_id, serial_number)
                    WHERE p.change IS NOT NULL AND p.previous_version <> s.version) THEN
            RAISE EXCEPTION USING ERRCODE = 'serialization_failure', MESSAGE = 'a certificate was changed meanwhile';
        END IF;
    END IF;

    fresh := planned - known;
    BEGIN
        INSERT INTO certificate_status (authority_id, serial_number, cert_status, revocation_time, revocation_reason,
                                        invalidity_date, not_after, version, certificate_sha256)
            SELECT p.authority_id, p.serial_number, CASE p.change WHEN 'issue' THEN 'good' ELSE 'revoked' END::cert_status,
                   p.revocation_time, p.revocation_reason, p.invalidity_date, p.not_after, p.version, p.certificate_sha256
              FROM pg_temp.planned_change p WHERE p.previous_version IS NULL AND p.change IS NOT NULL;
        IF known > 0 THEN
            UPDATE certificate_status s
               SET cert_status = CASE p.change WHEN 'unhold' THEN 'good' ELSE 'revoked' END::cert_status,
                   revocation_time = p.revocation_time, revocation_reason = p.revocation_reason,
                   invalidity_date = p.invalidity_date, not_after = p.not_after,
                   certificate_sha256 = p.certificate_sha256, version = p.version
              FROM pg_temp.planned_change p
             WHERE p.previous_version IS NOT NULL AND p.change IS NOT NULL
               AND s.authority_id = p.authority_id AND s.serial_number = p.serial_number;
            GET DIAGNOSTICS known = ROW_COUNT;
        END IF;
    EXCEPTION WHEN unique_violation THEN
        known := -1;
    END;
    IF fresh + known <> planned THEN
        SELECT p.serial_number INTO twice FROM pg_temp.planned_change p
            GROUP BY p.authority_id, p.serial_number HAVING count(*) > 1 LIMIT 1;
        IF FOUND THEN
            RAISE EXCEPTION USING ERRCODE = 'LK008', MESSAGE = format('the serial number %s is listed more than once',
                                                                      encode(twice, 'hex'));
        END IF;
        RAISE EXCEPTION USING ERRCODE = 'serialization_failure', MESSAGE = 'a certificate was announced meanwhile';
    END IF;
    INSERT INTO status_change (version, authority_id, serial_number, change, revocation_time, revocation_reason,
                               invalidity_date, not_after, certificate_sha256, actor, previous_version, crl_scope)
        SELECT p.version, p.authority_id, p.serial_number, p.change, p.revocation_time, p.revocation_reason,
               p.invalidity_date, p.not_after, p.certificate_sha256, who, p.previous_version, of_crl_scope
          FROM pg_temp.planned_change p WHERE p.change IS NOT NULL;
    RETURN newest;
END
$$;

-- Which CRL is the newest of its scope now, what it holds, and what the responders may say about the freshness of each
-- authority that it lists: the oldest thisUpdate and the earliest nextUpdate of the CRLs that list it.
-- A delta CRL never shortens the time that its complete CRL vouches for.
CREATE FUNCTION record_crl(of_authority_id integer, of_scope bytea, is_delta boolean, number bytea, issued_at timestamptz,
                           valid_until timestamptz, sha256_of_crl bytea, entry_count bigint, from_url text, who text)
    RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp SET timezone = 'UTC'
AS $$
DECLARE
    scope_id integer;
BEGIN
    PERFORM demand_may_act_for(of_authority_id);
    INSERT INTO crl_scope AS c (authority_id, scope, crl_number, complete_number, this_update, next_update, crl_sha256,
                                complete_entries, url, actor)
        VALUES (of_authority_id, of_scope, number, number, issued_at, valid_until, sha256_of_crl, entry_count, from_url,
                who)
        ON CONFLICT (authority_id, sha256(scope)) DO UPDATE SET
            crl_number = excluded.crl_number, this_update = excluded.this_update,
            next_update = CASE WHEN is_delta THEN greatest(c.next_update, excluded.next_update)
                               ELSE excluded.next_update END,
            complete_number = CASE WHEN is_delta THEN c.complete_number ELSE excluded.complete_number END,
            complete_entries = CASE WHEN is_delta THEN c.complete_entries ELSE excluded.complete_entries END,
            crl_sha256 = excluded.crl_sha256, url = coalesce(excluded.url, c.url), actor = excluded.actor,
            imported_at = now()
        RETURNING id INTO scope_id;
    INSERT INTO crl_scope_authority
        SELECT scope_id, listed.authority_id
          FROM (SELECT of_authority_id UNION SELECT a.authority_id FROM staged_authorities() a) AS listed (authority_id)
        ON CONFLICT DO NOTHING;

    IF is_delta THEN
        DELETE FROM crl_hold h USING pg_temp.staged_entry e
            WHERE h.crl_scope = scope_id AND h.authority_id = e.authority_id AND h.serial_number = e.serial_number;
    ELSE
        DELETE FROM crl_hold h WHERE h.crl_scope = scope_id;
    END IF;
    INSERT INTO crl_hold SELECT scope_id, e.authority_id, e.serial_number FROM pg_temp.staged_entry e
        WHERE e.revocation_reason = 6 ON CONFLICT DO NOTHING;

    INSERT INTO authority_crl AS c (authority_id, url, crl_number, this_update, next_update)
        SELECT a.authority_id, CASE WHEN count(*) = 1 THEN min(s.url) END,
               CASE WHEN count(*) = 1 THEN (array_agg(s.crl_number))[1] END, min(s.this_update), min(s.next_update)
          FROM crl_scope_authority a JOIN crl_scope s ON s.id = a.crl_scope
         WHERE a.authority_id IN (SELECT b.authority_id FROM crl_scope_authority b WHERE b.crl_scope = scope_id)
         GROUP BY a.authority_id
        ON CONFLICT (authority_id) DO UPDATE SET
            url = coalesce(excluded.url, c.url), crl_number = excluded.crl_number, this_update = excluded.this_update,
            next_update = excluded.next_update;
    RETURN scope_id;
END
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- Rights

REVOKE EXECUTE ON FUNCTION authority_has_no_statuses(), open_bulk(integer), demand_own_tables(),
    staged_authorities(),
    plan_crl(integer, bytea, boolean, timestamptz), plan_issued(integer), apply_plan(integer, text, integer),
    record_crl(integer, bytea, boolean, bytea, timestamptz, timestamptz, bytea, bigint, text, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION open_bulk(integer), plan_crl(integer, bytea, boolean, timestamptz), plan_issued(integer),
    apply_plan(integer, text, integer),
    record_crl(integer, bytea, boolean, bytea, timestamptz, timestamptz, bytea, bigint, text, text)
    TO lakthan_registry, lakthan_publisher;
GRANT SELECT ON crl_scope, crl_scope_authority, crl_hold
    TO lakthan_registry, lakthan_publisher, lakthan_registrar, lakthan_auditor;

DO $$
DECLARE
    confined text;
BEGIN
    FOREACH confined IN ARRAY ARRAY['crl_scope', 'crl_scope_authority', 'crl_hold'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', confined);
        EXECUTE format('CREATE POLICY all_rows ON %I FOR SELECT TO lakthan_registry, lakthan_registrar, lakthan_auditor '
                       'USING (true)', confined);
        EXECUTE format('CREATE POLICY own_rows ON %I FOR SELECT TO lakthan_publisher '
                       'USING (authority_id = (SELECT acting_authority()))', confined);
    END LOOP;
END
$$;

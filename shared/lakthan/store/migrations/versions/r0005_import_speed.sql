-- Imports in half the time, and an end for the CRLs of a scope that come no more.
--
-- What an import does for each of a million rows is all that it takes. So the database compares one part of a CRL while
-- the importer reads the next; only what goes into an index is sorted; the history's rows go past the triggers that
-- single changes need; and the seal hashes them in the order in which they lie there.

-- ---------------------------------------------------------------------------------------------------------------
-- The history of imports

-- Rows of status_change as all others: who reads that table reads these too, under its rights and row-level security.
-- They lie in a table of their own because a trigger that asks for the new rows of a statement makes PostgreSQL copy
-- them. apply_plan() writes here, and seals what it wrote; nobody else has any right to this table.
-- That there is an actor is checked once for each import, and not for each row.
ALTER TABLE status_change DROP CONSTRAINT change_has_an_actor,
    ADD CONSTRAINT change_has_an_actor CHECK (btrim(actor) <> '') NO INHERIT;
CREATE TABLE bulk_change (PRIMARY KEY (version)) INHERITS (status_change);
ALTER TABLE bulk_change ALTER COLUMN batch DROP DEFAULT;

CREATE TRIGGER not_by_hand BEFORE INSERT ON bulk_change
    FOR EACH STATEMENT WHEN (current_setting('lakthan.by_function', true) IS DISTINCT FROM 'on')
    EXECUTE FUNCTION refuse();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON bulk_change
    FOR EACH STATEMENT EXECUTE FUNCTION refuse();
ALTER TABLE bulk_change ENABLE ALWAYS TRIGGER append_only;
ALTER TABLE bulk_change ENABLE ROW LEVEL SECURITY;  -- without a policy: nothing for nobody

-- ---------------------------------------------------------------------------------------------------------------
-- Staging and comparing, part by part: while the database works on one, the importer reads the next. So the order of work
-- is open_bulk() → for each part COPY into staged_entry and plan_crl_part() → plan_crl() → record_crl() → apply_plan().

-- At the commit: what became history has become status too, and is sealed.
CREATE FUNCTION import_is_applied() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    IF NOT (SELECT i.applied FROM pg_temp.this_import i) THEN
        RAISE EXCEPTION USING ERRCODE = 'LK002', MESSAGE = 'an import that was not applied cannot be committed; roll it back';
    END IF;
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION open_bulk(of_authority_id integer) RETURNS void
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
    -- Of this import: its batch, a version that none of its own is below, the scope of the CRL, and what went into the history
    -- at once.
    CREATE TEMP TABLE this_import ON COMMIT DROP AS
        SELECT nextval('change_batch') AS batch, last_value AS first_version, NULL::integer AS crl_scope,
               NULL::text AS actor, 0::bigint AS revoked, 0::bigint AS held, false AS applied
          FROM status_version;
    CREATE CONSTRAINT TRIGGER is_applied AFTER UPDATE ON pg_temp.this_import DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW WHEN (NEW.revoked + NEW.held > 0) EXECUTE FUNCTION import_is_applied();
    -- Of the parts of a CRL that are planned: whose entries, and which ones, as far as that is asked for later.
    CREATE TEMP TABLE listed_authority (authority_id integer PRIMARY KEY, entries bigint NOT NULL) ON COMMIT DROP;
    CREATE TEMP TABLE listed_entry (
        authority_id        integer NOT NULL,
        serial_number       serial_number NOT NULL,
        revocation_reason   smallint
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

CREATE OR REPLACE FUNCTION demand_own_tables() RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    IF (SELECT count(*) FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner
         WHERE c.relnamespace = pg_my_temp_schema() AND c.relkind = 'r' AND r.rolname = current_user
           AND c.relname IN ('staged_entry', 'this_import', 'listed_authority', 'listed_entry', 'planned_change')) <> 5 THEN
        RAISE EXCEPTION USING ERRCODE = 'LK002', MESSAGE = 'nothing is staged: call open_bulk first';
    END IF;
END
$$;

-- Compare what is staged with what is on record, and make room for the next part. Where nothing is on record, as with a
-- CA's first CRL, which is often its greatest, there is nothing to compare with: the entries become history at once,
-- and status when the import is applied.
CREATE FUNCTION plan_crl_part(of_authority_id integer, of_scope bytea, issued_at timestamptz, who text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp SET timezone = 'UTC'
    SET work_mem = '96MB' SET hash_mem_multiplier = 1 SET lakthan.by_function = 'on'
AS $$
DECLARE
    work     record;
    part     record;
    known    boolean := who IS NULL;
    scope_id integer;
    asked    boolean;
    holds    bigint := 0;
    added    bigint;
BEGIN
    PERFORM demand_may_act_for(of_authority_id);
    PERFORM demand_own_tables();
    SELECT c.id INTO scope_id FROM crl_scope c WHERE c.authority_id = of_authority_id AND c.scope = of_scope;
    asked := scope_id IS NOT NULL;
    -- A scope that is new gets its number now: the history's rows have it.
    UPDATE pg_temp.this_import i
       SET crl_scope = coalesce(scope_id, nextval(pg_get_serial_sequence('public.crl_scope', 'id'))::integer), actor = who
     WHERE i.crl_scope IS NULL;
    SELECT i.batch, i.crl_scope, i.actor, i.applied INTO work FROM pg_temp.this_import i;
    IF work.applied THEN
        RAISE EXCEPTION USING ERRCODE = 'LK002', MESSAGE = 'this import was applied; begin another transaction';
    END IF;

    FOR part IN
        SELECT t.authority_id, count(*) AS entries, count(*) FILTER (WHERE t.revocation_reason = 6) AS held,
               count(*) FILTER (WHERE t.revocation_reason = 8) AS removed
          FROM pg_temp.staged_entry t GROUP BY t.authority_id ORDER BY t.authority_id
    LOOP
        PERFORM demand_may_act_for(part.authority_id);
        INSERT INTO pg_temp.listed_authority AS l VALUES (part.authority_id, part.entries)
            ON CONFLICT (authority_id) DO UPDATE SET entries = l.entries + excluded.entries;
        known := known OR EXISTS (SELECT FROM certificate_status s WHERE s.authority_id = part.authority_id);
        holds := holds + part.held;
        asked := asked OR part.held + part.removed > 0;
    END LOOP;
    IF asked THEN
        INSERT INTO pg_temp.listed_entry
            SELECT t.authority_id, t.serial_number, t.revocation_reason FROM pg_temp.staged_entry t
             WHERE t.revocation_reason IN (6, 8) OR scope_id IS NOT NULL;
    END IF;

    IF known THEN
        ANALYZE pg_temp.staged_entry;
        INSERT INTO pg_temp.planned_change
            SELECT t.authority_id, t.serial_number,
                   CASE WHEN s.cert_status = 'revoked' AND s.revocation_reason IS DISTINCT FROM 6 THEN NULL
                        WHEN t.revocation_reason = 6 THEN 'hold'::change_kind ELSE 'revoke' END,
                   least(t.revocation_time, issued_at), t.revocation_reason, t.invalidity_date, s.not_after,
                   s.certificate_sha256, s.version
              FROM pg_temp.staged_entry t LEFT JOIN certificate_status s USING (authority_id, serial_number)
             WHERE t.revocation_reason IS DISTINCT FROM 8
               AND (s.version IS NULL OR s.cert_status = 'good'
                    OR coalesce(s.revocation_reason, 0) <> coalesce(t.revocation_reason, 0));
    ELSE
        INSERT INTO bulk_change (version, authority_id, serial_number, change, revocation_time, revocation_reason,
                                 invalidity_date, actor, recorded_at, batch, crl_scope)
            SELECT nextval('status_version'), t.authority_id, t.serial_number,
                   CASE t.revocation_reason WHEN 6 THEN 'hold'::change_kind ELSE 'revoke' END,
                   least(t.revocation_time, issued_at), t.revocation_reason, t.invalidity_date, work.actor, now(),
                   work.batch, work.crl_scope
              FROM pg_temp.staged_entry t WHERE t.revocation_reason IS DISTINCT FROM 8;
        GET DIAGNOSTICS added = ROW_COUNT;
        UPDATE pg_temp.this_import i SET revoked = i.revoked + added - holds, held = i.held + holds;
    END IF;
    TRUNCATE pg_temp.staged_entry;
END
$$;

-- What the entries of a CRL would change, all parts together. A revocation is final, so one that is on record is only
-- compared: another reason is counted.
-- Only holds are undone: by removeFromCRL (8) in a delta CRL, or by leaving the complete CRL of the scope that held it.
-- A hold that was made otherwise, after this CRL was, stays; and so does one that another scope's CRL still holds.
CREATE OR REPLACE FUNCTION plan_crl(of_authority_id integer, of_scope bytea, is_delta boolean, issued_at timestamptz)
    RETURNS TABLE (entries bigint, revoked bigint, held bigint, released bigint, reason_changed bigint, vanished bigint)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp SET timezone = 'UTC'
    SET work_mem = '96MB' SET hash_mem_multiplier = 1
AS $$
DECLARE
    scope_id integer;
BEGIN
    PERFORM plan_crl_part(of_authority_id, of_scope, issued_at, NULL);
    SELECT coalesce(sum(l.entries), 0) INTO entries FROM pg_temp.listed_authority l;
    SELECT c.id INTO scope_id FROM crl_scope c WHERE c.authority_id = of_authority_id AND c.scope = of_scope;

    IF scope_id IS NOT NULL THEN
        ANALYZE pg_temp.listed_entry;
        INSERT INTO pg_temp.planned_change
            SELECT s.authority_id, s.serial_number, 'unhold', NULL, NULL, NULL, s.not_after, s.certificate_sha256,
                   s.version
              FROM (SELECT h.authority_id, h.serial_number FROM crl_hold h
                     WHERE h.crl_scope = scope_id AND NOT is_delta AND NOT EXISTS (
                           SELECT FROM pg_temp.listed_entry e
                            WHERE e.authority_id = h.authority_id AND e.serial_number = h.serial_number)
                    UNION
                    SELECT e.authority_id, e.serial_number FROM pg_temp.listed_entry e
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
               AND NOT EXISTS (SELECT FROM pg_temp.listed_entry e
                                WHERE e.authority_id = s.authority_id AND e.serial_number = s.serial_number);
        END IF;
    END IF;
    vanished := coalesce(vanished, 0);
    SELECT count(*) FILTER (WHERE p.change = 'revoke'), count(*) FILTER (WHERE p.change = 'hold'),
           count(*) FILTER (WHERE p.change = 'unhold'), count(*) FILTER (WHERE p.change IS NULL)
      INTO revoked, held, released, reason_changed FROM pg_temp.planned_change p;
    SELECT plan_crl.revoked + i.revoked, plan_crl.held + i.held INTO revoked, held FROM pg_temp.this_import i;
    RETURN NEXT;
END
$$;

-- The certificates of a list, good ones and revoked ones. What is on record in other words stays: it is counted and
-- some of it is named.
CREATE OR REPLACE FUNCTION plan_issued(of_authority_id integer)
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
                    WHEN e.revocation_time IS NULL THEN 'issue'::change_kind
                    WHEN e.revocation_reason = 6 THEN 'hold' ELSE 'revoke' END,
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
            OR s.revocation_reason IS DISTINCT FROM 6 AND e.revocation_time <> s.revocation_time;
    SELECT count(*) FILTER (WHERE p.change = 'issue'), count(*) FILTER (WHERE p.change = 'revoke'),
           count(*) FILTER (WHERE p.change = 'hold'), count(*) FILTER (WHERE p.change IS NULL),
           (array_agg(p.serial_number) FILTER (WHERE p.change IS NULL))[1:10]
      INTO issued, revoked, held, contradicting, examples FROM pg_temp.planned_change p;
    RETURN NEXT;
END
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- Applying

-- As seal_changes() does for a statement that changes single certificates: one record for each authority, and the
-- notifications. The rows are hashed as they lie on record, a thousand at a time, in the order of the index. Their
-- octets are those of change_octets(); what all of them have in common is put together once.
CREATE FUNCTION seal_bulk(of_batch bigint, first_version bigint, who text, of_crl_scope integer) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp SET timezone = 'UTC'
    SET enable_seqscan = off SET enable_bitmapscan = off
AS $$
DECLARE
    last_version bigint := (SELECT s.last_value FROM status_version s);
    no_time      bytea := '\x7fffffffffffffff';
    recorded     bytea := timestamptz_send(now());
    of_all       bytea;
    of_first     bytea;
    by_whom      bytea := int4send(octet_length(convert_to(who, 'UTF8'))) || convert_to(who, 'UTF8');
    issued       bytea := '\x01'::bytea || recorded;
    revoked      bytea := '\x02'::bytea || recorded;
    held         bytea := '\x03'::bytea || recorded;
    released     bytea := '\x04'::bytea || recorded;
    no_times     bytea := no_time || no_time;
    no_certificate bytea := int4send(0) || by_whom;
    chain_id     integer;
    thousand     bigint;
    part         record;
    digests      bytea;
    changes      bigint;
    loud         bigint;
    newest       bigint;
    fresh        audit_record;
BEGIN
    FOR chain_id IN
        SELECT l.authority_id FROM pg_temp.listed_authority l
         UNION SELECT p.authority_id FROM pg_temp.planned_change p WHERE p.change IS NOT NULL ORDER BY 1
    LOOP
        PERFORM FROM authority a WHERE a.id = chain_id FOR KEY SHARE;
        IF NOT FOUND THEN
            RAISE EXCEPTION USING ERRCODE = 'foreign_key_violation', MESSAGE = format('there is no authority %s', chain_id);
        END IF;

        of_all := int4send(chain_id) || int4send(coalesce(of_crl_scope, 0));
        of_first := int8send(0) || of_all;
        digests := '';
        changes := 0;
        loud := 0;
        FOR thousand IN first_version / 1000 .. last_version / 1000 LOOP
            SELECT sha256(string_agg(c.octets, '')) AS digest, count(*) AS changes,
                   count(*) FILTER (WHERE c.change <> 'issue') AS loud INTO part
              FROM (SELECT b.change,
                           int8send(b.version) || int8send(of_batch)
                               || CASE WHEN b.previous_version IS NULL THEN of_first
                                       ELSE int8send(b.previous_version) || of_all END
                               || int2send(coalesce(b.revocation_reason, -1::smallint))
                               || CASE b.change WHEN 'revoke' THEN revoked WHEN 'issue' THEN issued WHEN 'hold' THEN held
                                                WHEN 'unhold' THEN released END
                               || coalesce(timestamptz_send(b.revocation_time), no_time)
                               || CASE WHEN b.invalidity_date IS NULL AND b.not_after IS NULL THEN no_times
                                       ELSE coalesce(timestamptz_send(b.invalidity_date), no_time)
                                            || coalesce(timestamptz_send(b.not_after), no_time) END
                               || int4send(octet_length(b.serial_number)) || b.serial_number
                               || CASE WHEN b.certificate_sha256 IS NULL THEN no_certificate
                                       ELSE int4send(octet_length(b.certificate_sha256)) || b.certificate_sha256 || by_whom
                                       END AS octets
                      FROM bulk_change b
                     WHERE b.version >= thousand * 1000 AND b.version < thousand * 1000 + 1000
                       AND b.batch = of_batch AND b.authority_id = chain_id
                     ORDER BY b.version) AS c;
            CONTINUE WHEN part.changes = 0;
            digests := digests || part.digest;
            changes := changes + part.changes;
            loud := loud + part.loud;
        END LOOP;
        CONTINUE WHEN changes = 0;

        IF loud > 1000 THEN
            SELECT c.version INTO newest FROM bulk_change c
             WHERE c.version >= first_version AND c.batch = of_batch AND c.authority_id = chain_id
             ORDER BY c.version DESC LIMIT 1;
            PERFORM pg_notify('lakthan_status', json_build_object('authority_id', chain_id, 'all', true,
                'version', newest, 'changed_at', clock_timestamp())::text);
        ELSIF loud > 0 THEN
            PERFORM pg_notify('lakthan_status', json_build_object(
                'authority_id', told.authority_id,
                'serial_number', encode(told.serial_number, 'hex'),
                'cert_status', told.cert_status,
                'revocation_time', told.revocation_time,
                'revocation_reason', told.revocation_reason,
                'invalidity_date', told.invalidity_date,
                'not_after', told.not_after,
                'certificate_sha256', encode(told.certificate_sha256, 'hex'),
                'version', told.version,
                'changed_at', clock_timestamp())::text)
               FROM (SELECT s.* FROM bulk_change c JOIN certificate_status s USING (authority_id, serial_number, version)
                      WHERE c.version >= first_version AND c.batch = of_batch AND c.authority_id = chain_id
                        AND c.change <> 'issue' ORDER BY version) AS told;
        END IF;
        fresh := NULL;
        fresh.chain := chain_id;
        fresh.event := CASE WHEN current_setting('lakthan.event', true) IN ('crl', 'import')
                            THEN current_setting('lakthan.event') ELSE 'changes' END;
        fresh.actor := who;
        fresh.batch := of_batch;
        fresh.change_count := changes;
        fresh.changes_sha256 := sha256(digests);
        PERFORM extend_chain(fresh);
    END LOOP;
END
$$;

-- The versions were drawn while planning, before the rows are locked. That is as good as after it: a row whose version
-- is another one by now is not changed, and who changes it after this draws a greater one.
-- Gives the greatest version, null when nothing changed. SQLSTATE 40001: somebody else changed one of these
-- certificates meanwhile; plan again. LK008: the list contradicts itself.
CREATE OR REPLACE FUNCTION apply_plan(of_authority_id integer, who text, of_crl_scope integer) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp SET timezone = 'UTC'
    SET work_mem = '160MB' SET hash_mem_multiplier = 1 SET lakthan.by_function = 'on'
AS $$
DECLARE
    work    record;
    planned bigint;
    fresh   bigint;
    known   bigint;
    done    bigint := 0;
    newest  bigint;
    twice   bytea;
BEGIN
    PERFORM demand_may_act_for(of_authority_id);
    PERFORM demand_own_tables();
    SELECT i.batch, i.first_version, i.crl_scope, i.actor, i.applied, i.revoked + i.held AS in_history INTO work
      FROM pg_temp.this_import i;
    IF work.applied OR work.crl_scope IS DISTINCT FROM of_crl_scope OR coalesce(work.actor, who) <> who THEN
        RAISE EXCEPTION USING ERRCODE = 'LK002', MESSAGE = 'another import was begun; call open_bulk first';
    END IF;
    SELECT count(*), count(p.previous_version) INTO planned, known FROM pg_temp.planned_change p WHERE p.change IS NOT NULL;
    IF planned + work.in_history = 0 THEN
        RETURN NULL;
    ELSIF btrim(who) = '' THEN
        RAISE EXCEPTION USING ERRCODE = 'check_violation', CONSTRAINT = 'change_has_an_actor', MESSAGE = 'nobody is named';
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

    -- In the order of the serial number, so that they go into the index side by side. Of a sort, only the first key is
    -- compared fast. A million of them are sorted in memory, more than that on disk.
    fresh := planned - known;
    BEGIN
        IF work.in_history > 0 THEN
            INSERT INTO certificate_status (authority_id, serial_number, cert_status, revocation_time, revocation_reason,
                                            invalidity_date, version)
                SELECT c.authority_id, c.serial_number, 'revoked', c.revocation_time, c.revocation_reason,
                       c.invalidity_date, c.version
                  FROM bulk_change c WHERE c.version >= work.first_version AND c.batch = work.batch
                 ORDER BY c.serial_number, c.authority_id;
        END IF;
        IF fresh > 0 THEN
            INSERT INTO certificate_status (authority_id, serial_number, cert_status, revocation_time, revocation_reason,
                                            invalidity_date, not_after, version, certificate_sha256)
                SELECT p.authority_id, p.serial_number,
                       CASE p.change WHEN 'issue' THEN 'good'::cert_status ELSE 'revoked' END, p.revocation_time,
                       p.revocation_reason, p.invalidity_date, p.not_after, p.version, p.certificate_sha256
                  FROM pg_temp.planned_change p WHERE p.previous_version IS NULL AND p.change IS NOT NULL
                 ORDER BY p.serial_number, p.authority_id;
        END IF;
        IF known > 0 THEN
            UPDATE certificate_status s
               SET cert_status = CASE p.change WHEN 'unhold' THEN 'good'::cert_status ELSE 'revoked' END,
                   revocation_time = p.revocation_time, revocation_reason = p.revocation_reason,
                   invalidity_date = p.invalidity_date, not_after = p.not_after,
                   certificate_sha256 = p.certificate_sha256, version = p.version
              FROM pg_temp.planned_change p
             WHERE p.previous_version IS NOT NULL AND p.change IS NOT NULL
               AND s.authority_id = p.authority_id AND s.serial_number = p.serial_number;
            GET DIAGNOSTICS done = ROW_COUNT;
        END IF;
    EXCEPTION WHEN unique_violation THEN
        done := -1;
    END;
    IF done <> known THEN
        SELECT l.serial_number INTO twice
          FROM (SELECT p.authority_id, p.serial_number FROM pg_temp.planned_change p
                 UNION ALL
                SELECT c.authority_id, c.serial_number FROM bulk_change c
                 WHERE c.version >= work.first_version AND c.batch = work.batch) AS l
         GROUP BY l.authority_id, l.serial_number HAVING count(*) > 1 LIMIT 1;
        IF FOUND THEN
            RAISE EXCEPTION USING ERRCODE = 'LK008', MESSAGE = format('the serial number %s is listed more than once',
                                                                      encode(twice, 'hex'));
        END IF;
        RAISE EXCEPTION USING ERRCODE = 'serialization_failure', MESSAGE = 'a certificate was announced meanwhile';
    END IF;

    IF planned > 0 THEN
        INSERT INTO bulk_change (version, authority_id, serial_number, change, revocation_time, revocation_reason,
                                 invalidity_date, not_after, certificate_sha256, actor, recorded_at, batch,
                                 previous_version, crl_scope)
            SELECT p.version, p.authority_id, p.serial_number, p.change, p.revocation_time, p.revocation_reason,
                   p.invalidity_date, p.not_after, p.certificate_sha256, who, now(), work.batch, p.previous_version,
                   of_crl_scope
              FROM pg_temp.planned_change p WHERE p.change IS NOT NULL;
    END IF;
    PERFORM seal_bulk(work.batch, work.first_version, who, of_crl_scope);
    UPDATE pg_temp.this_import SET applied = true;
    SELECT c.version INTO newest FROM bulk_change c
     WHERE c.version >= work.first_version AND c.batch = work.batch ORDER BY c.version DESC LIMIT 1;
    RETURN newest;
END
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- The CRLs of an authority

-- What the responders may say about the freshness of each of these authorities: the oldest thisUpdate and the earliest
-- nextUpdate of the CRLs that list its certificates; nothing when there are none.
CREATE FUNCTION refresh_authority_crl(authority_ids integer[]) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp SET timezone = 'UTC'
AS $$
BEGIN
    DELETE FROM authority_crl c
     WHERE c.authority_id = ANY (authority_ids)
       AND NOT EXISTS (SELECT FROM crl_scope_authority a WHERE a.authority_id = c.authority_id);
    INSERT INTO authority_crl AS c (authority_id, url, crl_number, this_update, next_update)
        SELECT a.authority_id, CASE WHEN count(*) = 1 THEN min(s.url) END,
               CASE WHEN count(*) = 1 THEN (array_agg(s.crl_number))[1] END, min(s.this_update), min(s.next_update)
          FROM crl_scope_authority a JOIN crl_scope s ON s.id = a.crl_scope
         WHERE a.authority_id = ANY (authority_ids)
         GROUP BY a.authority_id
        ON CONFLICT (authority_id) DO UPDATE SET
            url = coalesce(excluded.url, c.url), crl_number = excluded.crl_number, this_update = excluded.this_update,
            next_update = excluded.next_update;
END
$$;

-- No more CRLs of this scope will come: what it said of freshness, and which certificates it holds, counts no longer. No
-- status changes. What went is in the audit chain, as for every row of these tables.
CREATE FUNCTION retire_crl_scope(of_authority_id integer, scope_id integer) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp SET timezone = 'UTC'
AS $$
DECLARE
    listed integer[];
BEGIN
    PERFORM demand_may_act_for(of_authority_id);
    PERFORM pg_advisory_xact_lock(x'62756c6b'::integer, of_authority_id);  -- not while one is imported
    listed := array(SELECT a.authority_id FROM crl_scope_authority a WHERE a.crl_scope = scope_id);
    DELETE FROM crl_scope c WHERE c.id = scope_id AND c.authority_id = of_authority_id;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'LK002',
            MESSAGE = format('authority %s has no CRLs of scope %s', of_authority_id, scope_id);
    END IF;
    PERFORM refresh_authority_crl(listed);
END
$$;

-- Which CRL is the newest of its scope now, and what it holds. A delta CRL never shortens the time that its complete CRL
-- vouches for.
CREATE OR REPLACE FUNCTION record_crl(of_authority_id integer, of_scope bytea, is_delta boolean, number bytea, issued_at timestamptz,
                           valid_until timestamptz, sha256_of_crl bytea, entry_count bigint, from_url text, who text)
    RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp SET timezone = 'UTC'
AS $$
DECLARE
    scope_id integer;
BEGIN
    PERFORM demand_may_act_for(of_authority_id);
    PERFORM demand_own_tables();
    INSERT INTO crl_scope AS c (id, authority_id, scope, crl_number, complete_number, this_update, next_update,
                                crl_sha256, complete_entries, url, actor)
        OVERRIDING SYSTEM VALUE
        SELECT i.crl_scope, of_authority_id, of_scope, number, number, issued_at, valid_until, sha256_of_crl, entry_count,
               from_url, who
          FROM pg_temp.this_import i
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
          FROM (SELECT of_authority_id UNION SELECT a.authority_id FROM pg_temp.listed_authority a) AS listed (authority_id)
        ON CONFLICT DO NOTHING;

    IF is_delta THEN
        DELETE FROM crl_hold h USING pg_temp.listed_entry e
            WHERE h.crl_scope = scope_id AND h.authority_id = e.authority_id AND h.serial_number = e.serial_number;
    ELSE
        DELETE FROM crl_hold h WHERE h.crl_scope = scope_id;
    END IF;
    INSERT INTO crl_hold SELECT scope_id, e.authority_id, e.serial_number FROM pg_temp.listed_entry e
        WHERE e.revocation_reason = 6 ON CONFLICT DO NOTHING;

    PERFORM refresh_authority_crl(array(SELECT b.authority_id FROM crl_scope_authority b WHERE b.crl_scope = scope_id));
    RETURN scope_id;
END
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- Rights

REVOKE EXECUTE ON FUNCTION seal_bulk(bigint, bigint, text, integer), plan_crl_part(integer, bytea, timestamptz, text),
    import_is_applied(), refresh_authority_crl(integer[]), retire_crl_scope(integer, integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION plan_crl_part(integer, bytea, timestamptz, text) TO lakthan_registry, lakthan_publisher;
GRANT EXECUTE ON FUNCTION retire_crl_scope(integer, integer) TO lakthan_registry;

-- A CA's first CRL in two thirds of the time.
--
-- It is often its greatest, and nothing of the authority is on record yet. What it took longest for was the index of the
-- history, entry by entry, and the pieces of the octets that are sealed.

-- ---------------------------------------------------------------------------------------------------------------
-- The history of a great first CRL

-- Its rows lie in a table of their own, a child of bulk_change like that is one of status_change: who reads status_change
-- reads it too, under the same rights and row-level security. An index that is made when all rows are there costs a third.
-- There is one such table for an authority at most, because there is one only where nothing of the authority is on record.
-- Until it has joined, nobody but the owner's functions knows of it; a rollback takes it away.

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
    -- Of this import: its batch, a version that none of its own is below, the scope of the CRL, what went into the history
    -- at once, and the history's table of this import alone, if it has one.
    CREATE TEMP TABLE this_import ON COMMIT DROP AS
        SELECT nextval('change_batch') AS batch, last_value AS first_version, NULL::integer AS crl_scope,
               NULL::text AS actor, 0::bigint AS revoked, 0::bigint AS held, false AS applied,
               NULL::text AS own_table
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

-- As before; ten thousand entries at once, where nothing is on record, get a table of their own, and what is compared is
-- compared once.
CREATE OR REPLACE FUNCTION plan_crl_part(of_authority_id integer, of_scope bytea, issued_at timestamptz, who text) RETURNS void
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
    staged   bigint := 0;
    own      text;
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
    SELECT i.batch, i.crl_scope, i.actor, i.applied, i.own_table INTO work FROM pg_temp.this_import i;
    IF work.applied THEN
        RAISE EXCEPTION USING ERRCODE = 'LK002', MESSAGE = 'this import was applied; begin another transaction';
    END IF;
    -- With what is on record all parts are compared at once, by plan_crl(): each by itself would read the whole of it again.
    IF NOT known AND EXISTS (SELECT FROM certificate_status s WHERE s.authority_id = of_authority_id) THEN
        RETURN;
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
        staged := staged + part.entries;
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
        own := work.own_table;
        IF own IS NULL AND staged >= 10000 THEN
            own := 'bulk_change_' || work.batch;
            EXECUTE format('CREATE TABLE public.%I (LIKE public.bulk_change)', own);
            UPDATE pg_temp.this_import i SET own_table = own;
        END IF;
        EXECUTE format($insert$
            INSERT INTO public.%I (version, authority_id, serial_number, change, revocation_time, revocation_reason,
                                   invalidity_date, actor, recorded_at, batch, crl_scope)
                SELECT nextval('public.status_version'), t.authority_id, t.serial_number,
                       CASE t.revocation_reason WHEN 6 THEN 'hold'::public.change_kind ELSE 'revoke' END,
                       least(t.revocation_time, $1), t.revocation_reason, t.invalidity_date, $2, now(), $3, $4
                  FROM pg_temp.staged_entry t WHERE t.revocation_reason IS DISTINCT FROM 8
            $insert$, coalesce(own, 'bulk_change')) USING issued_at, work.actor, work.batch, work.crl_scope;
        GET DIAGNOSTICS added = ROW_COUNT;
        UPDATE pg_temp.this_import i SET revoked = i.revoked + added - holds, held = i.held + holds;
    END IF;
    TRUNCATE pg_temp.staged_entry;
END
$$;

-- The table of this import joins the history: with the index, the triggers and the row-level security of bulk_change. From
-- here to the commit no other table can join.
CREATE FUNCTION join_history() RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    own text;
BEGIN
    PERFORM demand_own_tables();
    SELECT i.own_table INTO own FROM pg_temp.this_import i;
    IF own IS NULL OR EXISTS (SELECT FROM pg_inherits h WHERE h.inhrelid = format('public.%I', own)::regclass) THEN
        RETURN;
    END IF;
    EXECUTE format('ALTER TABLE public.%I ADD PRIMARY KEY (version)', own);
    EXECUTE format('CREATE INDEX ON public.%I USING brin (batch) WITH (pages_per_range = 16, autosummarize = on)', own);
    EXECUTE format('CREATE TRIGGER not_by_hand BEFORE INSERT ON public.%I FOR EACH STATEMENT '
                   'WHEN (current_setting(''lakthan.by_function'', true) IS DISTINCT FROM ''on'') '
                   'EXECUTE FUNCTION public.refuse()', own);
    EXECUTE format('CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON public.%I FOR EACH STATEMENT '
                   'EXECUTE FUNCTION public.refuse()', own);
    EXECUTE format('ALTER TABLE public.%I ENABLE ALWAYS TRIGGER append_only', own);
    EXECUTE format('ALTER TABLE public.%I ENABLE ROW LEVEL SECURITY', own);
    EXECUTE format('ALTER TABLE public.%I INHERIT public.bulk_change', own);
END
$$;

-- As before, with what has a table of its own; and the history is not read through for entries that are still listed.
CREATE OR REPLACE FUNCTION plan_crl(of_authority_id integer, of_scope bytea, is_delta boolean, issued_at timestamptz)
    RETURNS TABLE (entries bigint, revoked bigint, held bigint, released bigint, reason_changed bigint, vanished bigint)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp SET timezone = 'UTC'
    SET work_mem = '96MB' SET hash_mem_multiplier = 1
AS $$
DECLARE
    scope_id integer;
BEGIN
    PERFORM plan_crl_part(of_authority_id, of_scope, issued_at, NULL);
    PERFORM join_history();
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
            -- A few at most, as a rule: only of these the history is asked which CRL revoked them.
            CREATE TEMP TABLE missing_entry ON COMMIT DROP AS
                SELECT s.version FROM certificate_status s
                 WHERE s.cert_status = 'revoked' AND s.revocation_reason IS DISTINCT FROM 6
                   AND s.authority_id IN (SELECT a.authority_id FROM crl_scope_authority a WHERE a.crl_scope = scope_id)
                   AND (s.not_after IS NULL OR s.not_after > issued_at)
                   AND NOT EXISTS (SELECT FROM pg_temp.listed_entry e
                                    WHERE e.authority_id = s.authority_id AND e.serial_number = s.serial_number);
            ANALYZE pg_temp.missing_entry;
            SELECT count(*) INTO vanished FROM pg_temp.missing_entry m JOIN status_change c ON c.version = m.version
             WHERE c.crl_scope = scope_id;
            DROP TABLE pg_temp.missing_entry;
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

-- ---------------------------------------------------------------------------------------------------------------
-- The seal

-- As before: one record for each authority, and the notifications; the octets that are hashed are those of change_octets().
-- Putting them together costs more than hashing them, so what most rows have in common is put together once, in as few
-- pieces as there can be: for a first revocation the version, all up to its time, the time, all up to the serial number,
-- the serial number, and the rest.
CREATE OR REPLACE FUNCTION seal_bulk(of_batch bigint, first_version bigint, who text, of_crl_scope integer) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp SET timezone = 'UTC'
    SET enable_seqscan = off SET enable_bitmapscan = off
AS $$
DECLARE
    last_version bigint := (SELECT s.last_value FROM status_version s);
    no_time      bytea := '\x7fffffffffffffff';
    no_times     bytea := no_time || no_time;
    recorded     bytea := timestamptz_send(now());
    by_whom      bytea := int4send(octet_length(convert_to(who, 'UTF8'))) || convert_to(who, 'UTF8');
    no_certificate bytea := int4send(0) || by_whom;
    issued       bytea := '\x01'::bytea || recorded;
    revoked      bytea := '\x02'::bytea || recorded;
    held         bytea := '\x03'::bytea || recorded;
    released     bytea := '\x04'::bytea || recorded;
    of_all       bytea;
    of_first     bytea;
    -- What stands between the version and the time of a revocation that is a certificate's first change, by its reason:
    -- none, 0 to 10. And what stands between that time and the serial number when there is no other time, by its length.
    first_revoked bytea[];
    then_serial  bytea[] := array(SELECT no_times || int4send(n) FROM generate_series(1, 128) AS n ORDER BY n);
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
        first_revoked := array(SELECT int8send(of_batch) || of_first || int2send(n::smallint) || revoked
                                 FROM generate_series(-1, 10) AS n ORDER BY n);
        digests := '';
        changes := 0;
        loud := 0;
        FOR thousand IN first_version / 1000 .. last_version / 1000 LOOP
            SELECT sha256(string_agg(c.octets, '')) AS digest, count(*) AS changes,
                   count(*) FILTER (WHERE c.change <> 'issue') AS loud INTO part
              FROM (SELECT b.change,
                           int8send(b.version)
                               || CASE WHEN b.change = 'revoke' AND b.previous_version IS NULL
                                            AND coalesce(b.revocation_reason, 0) BETWEEN 0 AND 10
                                       THEN first_revoked[coalesce(b.revocation_reason, -1) + 2]
                                       ELSE int8send(of_batch)
                                            || CASE WHEN b.previous_version IS NULL THEN of_first
                                                    ELSE int8send(b.previous_version) || of_all END
                                            || int2send(coalesce(b.revocation_reason, -1::smallint))
                                            || CASE b.change WHEN 'revoke' THEN revoked WHEN 'issue' THEN issued
                                                             WHEN 'hold' THEN held WHEN 'unhold' THEN released END
                                       END
                               || coalesce(timestamptz_send(b.revocation_time), no_time)
                               || CASE WHEN b.invalidity_date IS NULL AND b.not_after IS NULL
                                       THEN then_serial[octet_length(b.serial_number)]
                                       ELSE coalesce(timestamptz_send(b.invalidity_date), no_time)
                                            || coalesce(timestamptz_send(b.not_after), no_time)
                                            || int4send(octet_length(b.serial_number)) END
                               || b.serial_number
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

-- ---------------------------------------------------------------------------------------------------------------
-- Rights

REVOKE EXECUTE ON FUNCTION join_history() FROM PUBLIC;

-- A CA's first CRL, with a quarter less processor time, and some of that beside each other.
--
-- Its entries come by columns, some hundred in a row, so that each of them becomes a row once for the history and once for
-- its status, and no third time on the way. Its seal is put together on two processors.

-- ---------------------------------------------------------------------------------------------------------------
-- Staging by columns

-- As before, with the table for entries by columns.
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
    -- Some hundred entries of a CRL in a row, by columns; instants in seconds since 1970. What is long goes aside as it is.
    CREATE TEMP TABLE staged_part (
        authority_id        integer NOT NULL,
        serial_numbers      bytea[] NOT NULL,
        revocation_times    double precision[] NOT NULL,
        revocation_reasons  smallint[] NOT NULL,
        invalidity_dates    double precision[]  -- null: none of them has one
    ) ON COMMIT DROP;
    ALTER TABLE pg_temp.staged_part ALTER serial_numbers SET STORAGE EXTERNAL, ALTER revocation_times SET STORAGE EXTERNAL,
        ALTER revocation_reasons SET STORAGE EXTERNAL, ALTER invalidity_dates SET STORAGE EXTERNAL;
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
    GRANT INSERT ON staged_entry, staged_part TO lakthan_registry, lakthan_publisher;
END
$$;

-- Some entries of a CRL that lie in staged_part: what plan_crl_part() does for those in staged_entry. Where nothing is on
-- record they go into the history from there, without a row of their own in between; else they are staged as before.
CREATE FUNCTION take_crl_part(of_authority_id integer, of_scope bytea, issued_at timestamptz, who text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp SET timezone = 'UTC'
    SET lakthan.by_function = 'on'
AS $$
DECLARE
    listed text := 'SELECT p.authority_id, unnest(p.serial_numbers) AS serial_number, '
                   'to_timestamp(unnest(p.revocation_times)) AS revocation_time, '
                   'unnest(p.revocation_reasons) AS revocation_reason, '
                   'to_timestamp(unnest(p.invalidity_dates)) AS invalidity_date FROM pg_temp.staged_part p ';
    work   record;
    part   record;
    own    text;
    added  bigint;
BEGIN
    PERFORM demand_may_act_for(of_authority_id);
    PERFORM demand_own_tables();
    IF NOT EXISTS (SELECT FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner
                    WHERE c.relnamespace = pg_my_temp_schema() AND c.relkind = 'r' AND r.rolname = current_user
                      AND c.relname = 'staged_part') THEN
        RAISE EXCEPTION USING ERRCODE = 'LK002', MESSAGE = 'nothing is staged: call open_bulk first';
    END IF;
    -- For a caller that names nobody (plan_crl) and for a CRL about others there is the way of plan_crl_part() alone.
    IF who IS NULL OR EXISTS (SELECT FROM crl_scope c WHERE c.authority_id = of_authority_id AND c.scope = of_scope)
            OR EXISTS (SELECT FROM certificate_status s WHERE s.authority_id = of_authority_id)
            OR EXISTS (SELECT FROM pg_temp.staged_part p WHERE p.authority_id <> of_authority_id) THEN
        EXECUTE 'INSERT INTO pg_temp.staged_entry (authority_id, serial_number, revocation_time, revocation_reason, '
                'invalidity_date) ' || listed;
        TRUNCATE pg_temp.staged_part;
        PERFORM plan_crl_part(of_authority_id, of_scope, issued_at, who);
        RETURN;
    END IF;

    UPDATE pg_temp.this_import i
       SET crl_scope = nextval(pg_get_serial_sequence('public.crl_scope', 'id'))::integer, actor = who
     WHERE i.crl_scope IS NULL;
    SELECT i.batch, i.crl_scope, i.actor, i.applied, i.own_table INTO work FROM pg_temp.this_import i;
    IF work.applied THEN
        RAISE EXCEPTION USING ERRCODE = 'LK002', MESSAGE = 'this import was applied; begin another transaction';
    END IF;
    SELECT coalesce(sum(cardinality(p.serial_numbers)), 0) AS entries, coalesce(sum(CASE WHEN 6 = ANY (p.revocation_reasons)
               THEN cardinality(array_positions(p.revocation_reasons, 6::smallint)) ELSE 0 END), 0) AS held
      INTO part FROM pg_temp.staged_part p;
    INSERT INTO pg_temp.listed_authority AS l VALUES (of_authority_id, part.entries)
        ON CONFLICT (authority_id) DO UPDATE SET entries = l.entries + excluded.entries;
    EXECUTE 'INSERT INTO pg_temp.listed_entry SELECT e.authority_id, e.serial_number, e.revocation_reason FROM (' || listed
            || 'WHERE 6 = ANY (p.revocation_reasons) OR 8 = ANY (p.revocation_reasons)) AS e '
               'WHERE e.revocation_reason IN (6, 8)';

    own := work.own_table;
    IF own IS NULL AND part.entries >= 10000 THEN
        own := 'bulk_change_' || work.batch;
        EXECUTE format('CREATE TABLE public.%I (LIKE public.bulk_change)', own);
        UPDATE pg_temp.this_import i SET own_table = own;
    END IF;
    EXECUTE format($insert$
        INSERT INTO public.%I (version, authority_id, serial_number, change, revocation_time, revocation_reason,
                               invalidity_date, actor, recorded_at, batch, crl_scope)
            SELECT nextval('public.status_version'), e.authority_id, e.serial_number,
                   CASE e.revocation_reason WHEN 6 THEN 'hold'::public.change_kind ELSE 'revoke' END,
                   least(e.revocation_time, $1), e.revocation_reason, e.invalidity_date, $2, now(), $3, $4
              FROM (%s) AS e WHERE e.revocation_reason IS DISTINCT FROM 8
        $insert$, coalesce(own, 'bulk_change'), listed) USING issued_at, work.actor, work.batch, work.crl_scope;
    GET DIAGNOSTICS added = ROW_COUNT;
    UPDATE pg_temp.this_import i SET revoked = i.revoked + added - part.held, held = i.held + part.held;
    TRUNCATE pg_temp.staged_part;
END
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- Applying and sealing

-- As before; the rows of the history that become statuses are read from where they lie, narrow and without a search.
CREATE OR REPLACE FUNCTION apply_plan(of_authority_id integer, who text, of_crl_scope integer) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp SET timezone = 'UTC'
    SET work_mem = '160MB' SET hash_mem_multiplier = 1 SET lakthan.by_function = 'on'
AS $$
DECLARE
    work    record;
    history text := 'SELECT c.version, c.revocation_time, c.invalidity_date, c.authority_id, c.revocation_reason, '
                    'c.serial_number FROM ';
    planned bigint;
    fresh   bigint;
    known   bigint;
    done    bigint := 0;
    newest  bigint;
    twice   bytea;
BEGIN
    PERFORM demand_may_act_for(of_authority_id);
    PERFORM demand_own_tables();
    SELECT i.batch, i.first_version, i.crl_scope, i.actor, i.applied, i.own_table,
           i.revoked + i.held AS in_history INTO work
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
    -- compared fast. What came from a first CRL lies in its own table, of which all rows are wanted, or is not much.
    fresh := planned - known;
    BEGIN
        IF work.in_history > 0 THEN
            -- So little that each sorted part stays near the processor; one that is far away waits for memory at every row.
            PERFORM set_config('work_mem', '32MB', true);
            IF work.own_table IS NOT NULL THEN
                history := format('%spublic.%I c UNION ALL %1$s', history, work.own_table);
            END IF;
            EXECUTE format($insert$
                INSERT INTO public.certificate_status (authority_id, serial_number, cert_status, revocation_time,
                                                       revocation_reason, invalidity_date, version)
                    SELECT h.authority_id, h.serial_number, 'revoked', h.revocation_time, h.revocation_reason,
                           h.invalidity_date, h.version
                      FROM (%s ONLY public.bulk_change c WHERE c.version >= $1 AND c.batch = $2
                             ORDER BY serial_number, authority_id) AS h
                $insert$, history) USING work.first_version, work.batch;
            PERFORM set_config('work_mem', '160MB', true);
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

-- The octets that are hashed are those of change_octets(): of each thousand versions their hash, how many changes there are,
-- and how many of these must be told; in the order of the versions, as the verifier reads them. Putting the octets together
-- costs more than hashing them, so what most rows have in common is put together once, in as few pieces as there can be: for
-- a first revocation the version, all up to its time, the time, all up to the serial number, the serial number, and the rest.
CREATE FUNCTION hash_changes(of_batch bigint, chain_id integer, who text, of_crl_scope integer, first_thousand bigint,
                             last_thousand bigint)
    RETURNS TABLE (thousand bigint, digest bytea, changes bigint, loud bigint)
    LANGUAGE plpgsql STABLE PARALLEL SAFE COST 1000000 SET search_path = pg_catalog, public, pg_temp SET timezone = 'UTC'
AS $$
DECLARE
    no_time      bytea := '\x7fffffffffffffff';
    no_times     bytea := no_time || no_time;
    recorded     bytea := timestamptz_send(now());
    by_whom      bytea := int4send(octet_length(convert_to(who, 'UTF8'))) || convert_to(who, 'UTF8');
    no_certificate bytea := int4send(0) || by_whom;
    issued       bytea := '\x01'::bytea || recorded;
    revoked      bytea := '\x02'::bytea || recorded;
    held         bytea := '\x03'::bytea || recorded;
    released     bytea := '\x04'::bytea || recorded;
    of_all       bytea := int4send(chain_id) || int4send(coalesce(of_crl_scope, 0));
    of_first     bytea := int8send(0) || of_all;
    -- What stands between the version and the time of a revocation that is a certificate's first change, by its reason:
    -- none, 0 to 10. And what stands between that time and the serial number when there is no other time, by its length.
    first_revoked bytea[] := array(SELECT int8send(of_batch) || of_first || int2send(n::smallint) || revoked
                                     FROM generate_series(-1, 10) AS n ORDER BY n);
    then_serial  bytea[] := array(SELECT no_times || int4send(n) FROM generate_series(1, 128) AS n ORDER BY n);
BEGIN
    FOR number IN first_thousand .. last_thousand LOOP
        thousand := number;
        SELECT sha256(string_agg(c.octets, '')), count(*), count(*) FILTER (WHERE c.change <> 'issue')
          INTO digest, changes, loud
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
                 WHERE b.version >= number * 1000 AND b.version < number * 1000 + 1000
                   AND b.batch = of_batch AND b.authority_id = chain_id
                 ORDER BY b.version) AS c;
        IF changes > 0 THEN
            RETURN NEXT;
        END IF;
    END LOOP;
END
$$;

-- As before, one record for each authority, and the notifications. More than a few thousand changes are dealt out to two
-- helpers of this process, which waits for them; when the server has none to spare, it hashes them all by itself.
CREATE OR REPLACE FUNCTION seal_bulk(of_batch bigint, first_version bigint, who text, of_crl_scope integer) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp SET timezone = 'UTC'
    SET enable_seqscan = off SET enable_bitmapscan = off
    SET max_parallel_workers_per_gather = 2 SET parallel_leader_participation = off
    SET parallel_setup_cost = 0 SET parallel_tuple_cost = 0
AS $$
DECLARE
    first_part   bigint := first_version / 1000;
    last_part    bigint := (SELECT s.last_value FROM status_version s) / 1000;
    shares       integer := CASE WHEN last_part - first_part < 8 THEN 1 ELSE 8 END;
    dealt_out    text := (SELECT string_agg(format('SELECT * FROM public.hash_changes($1, $2, $3, $4, %s, %s)',
                                                first_part + (last_part - first_part + 1) * n / shares,
                                                first_part + (last_part - first_part + 1) * (n + 1) / shares - 1),
                                            ' UNION ALL ')
                            FROM generate_series(0, shares - 1) AS n);
    chain_id     integer;
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

        EXECUTE 'SELECT string_agg(h.digest, '''' ORDER BY h.thousand), coalesce(sum(h.changes), 0), '
                'coalesce(sum(h.loud), 0) FROM (' || dealt_out || ') AS h'
            INTO digests, changes, loud USING of_batch, chain_id, who, of_crl_scope;
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

REVOKE EXECUTE ON FUNCTION take_crl_part(integer, bytea, timestamptz, text),
    hash_changes(bigint, integer, text, integer, bigint, bigint) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION take_crl_part(integer, bytea, timestamptz, text) TO lakthan_registry, lakthan_publisher;

-- Who may write, and how nobody can deny it later.
--
-- Three rules shape it:
--   * a CA reaches the rows of its own authority and no others: the functions ask may_act_for() first, and row-level
--     security stands behind them;
--   * every change of a status, an authority, a policy or a credential is a record in the audit chain of its authority,
--     in the transaction of the change;
--   * a record holds the hash of the one before it, so that no record can be edited, put in or taken out unseen.

-- ---------------------------------------------------------------------------------------------------------------
-- Roles, beside those of the first schema. lakthan_registry is the operator's: all authorities.

DO $$
DECLARE
    wanted text;
BEGIN
    FOREACH wanted IN ARRAY ARRAY['lakthan_publisher', 'lakthan_registrar', 'lakthan_auditor'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = wanted) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN', wanted);
            EXCEPTION WHEN duplicate_object OR unique_violation THEN
                NULL;  -- another database of the server was faster
            END;
        END IF;
    END LOOP;
END
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- For whom does this session act?

-- A CA's own SQL login, bound to its authority for good: no setting can take it elsewhere.
CREATE TABLE authority_login (
    login         name PRIMARY KEY,
    authority_id  integer NOT NULL REFERENCES authority ON DELETE CASCADE
);

-- The authority of the login; else, for the registry's service, which has authenticated somebody and says whom, the
-- setting of this transaction. A login that is nobody's acts for no authority, whatever it sets: only who may make
-- credentials anyhow (lakthan_registrar) is believed.
CREATE FUNCTION acting_authority() RETURNS integer
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    bound integer;
BEGIN
    SELECT l.authority_id INTO bound FROM authority_login l WHERE l.login = session_user;
    IF NOT FOUND AND pg_has_role(session_user, 'lakthan_registrar', 'MEMBER') THEN
        bound := nullif(current_setting('lakthan.authority', true), '')::integer;
    END IF;
    RETURN bound;
END
$$;

-- The operator and the owner act for every authority. The caller is the role that was set, or else the login: inside
-- of a SECURITY DEFINER function current_user is the owner.
CREATE FUNCTION may_act_for(wanted_authority_id integer) RETURNS boolean
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    caller name := CASE current_setting('role') WHEN 'none' THEN session_user ELSE current_setting('role') END;
BEGIN
    RETURN pg_has_role(caller, 'lakthan_registry', 'USAGE') OR pg_has_role(caller, current_user, 'USAGE')
        OR coalesce(acting_authority() = wanted_authority_id, false);
END
$$;

-- For every function that writes, as its first statement. LK006: the caller may not act for that authority.
CREATE FUNCTION demand_may_act_for(wanted_authority_id integer) RETURNS void
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    IF NOT may_act_for(wanted_authority_id) THEN
        RAISE EXCEPTION USING ERRCODE = 'LK006',
            MESSAGE = format('may not act for authority %s', wanted_authority_id);
    END IF;
END
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- Credentials of the registry's callers, and what belongs to them.

CREATE TABLE credential (
    id                  integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name                text NOT NULL UNIQUE CONSTRAINT credential_has_a_name CHECK (name <> '' AND name = btrim(name)),
    role                text NOT NULL CONSTRAINT credential_role_is_one_of CHECK (
                            role IN ('publisher', 'registrar', 'auditor')),
    authority_id        integer REFERENCES authority,
    scopes              text[] NOT NULL DEFAULT '{}' CONSTRAINT scopes_are_known CHECK (
                            scopes <@ ARRAY['issue', 'revoke', 'hold', 'crl', 'read']),
    token_sha256        bytea UNIQUE CONSTRAINT token_sha256_is_a_sha256 CHECK (octet_length(token_sha256) = 32),
    certificate_sha256  bytea UNIQUE CONSTRAINT certificate_sha256_is_a_sha256 CHECK (
                            octet_length(certificate_sha256) = 32),
    expires_at          timestamptz NOT NULL CONSTRAINT credential_ends CHECK (isfinite(expires_at)),
    revoked_at          timestamptz,
    created_by          text NOT NULL CONSTRAINT credential_has_a_maker CHECK (btrim(created_by) <> ''),
    created_at          timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT publisher_has_an_authority CHECK ((role = 'publisher') = (authority_id IS NOT NULL)),
    CONSTRAINT publisher_has_scopes CHECK ((role = 'publisher') = (cardinality(scopes) > 0)),
    CONSTRAINT token_or_certificate CHECK (num_nonnulls(token_sha256, certificate_sha256) = 1)
);

-- What a caller presents is looked up by its hash. `state` is the database's word on the time: no clock of a service
-- can prolong a credential.
CREATE FUNCTION find_credential(presented_kind text, presented_sha256 bytea)
    RETURNS TABLE (id integer, name text, role text, authority_id integer, scopes text[], kind text,
                   expires_at timestamptz, revoked_at timestamptz, created_by text, created_at timestamptz, state text)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
AS $$
    SELECT c.id, c.name, c.role, c.authority_id, c.scopes, $1, c.expires_at, c.revoked_at, c.created_by, c.created_at,
           CASE WHEN c.revoked_at IS NOT NULL THEN 'revoked'
                WHEN c.expires_at <= clock_timestamp() THEN 'expired' ELSE 'valid' END
      FROM credential c
     WHERE ($1 = 'token' AND c.token_sha256 = $2) OR ($1 = 'certificate' AND c.certificate_sha256 = $2)
$$;

-- A call with an idempotency key is done once; who asks again gets the same versions. Written with the change itself.
CREATE TABLE idempotency_key (
    credential_id   integer NOT NULL REFERENCES credential,
    key             text NOT NULL CONSTRAINT key_is_short CHECK (octet_length(key) BETWEEN 1 AND 255),
    request_sha256  bytea NOT NULL CONSTRAINT request_sha256_is_a_sha256 CHECK (octet_length(request_sha256) = 32),
    versions        bigint[],  -- null only inside the transaction that records the change
    at              timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (credential_id, key)
);
CREATE INDEX idempotency_key_at ON idempotency_key (credential_id, at);

CREATE TABLE authority_policy (
    authority_id            integer PRIMARY KEY REFERENCES authority ON DELETE CASCADE,
    crl_urls                text[] NOT NULL DEFAULT '{}',
    declared_delay          interval NOT NULL DEFAULT '1 hour' CONSTRAINT delay_is_positive CHECK (declared_delay > '0'),
    crl_drop_limit_percent  smallint NOT NULL DEFAULT 10 CONSTRAINT drop_limit_is_a_percentage CHECK (
                                crl_drop_limit_percent BETWEEN 0 AND 100)
);

-- ---------------------------------------------------------------------------------------------------------------
-- The audit chain: one for each authority, by its id; chain 0 is for what is done for no single authority.

CREATE TABLE audit_record (
    chain            integer NOT NULL,
    number           bigint NOT NULL,  -- from 1, without a gap
    at               timestamptz NOT NULL,
    event            text NOT NULL,
    actor            text NOT NULL CONSTRAINT record_has_an_actor CHECK (btrim(actor) <> ''),
    through          text NOT NULL,
    login            text NOT NULL,
    detail           text NOT NULL,  -- a JSON object
    batch            bigint,  -- of the status changes that this record seals, null when there are none
    change_count     bigint,
    changes_sha256   bytea,
    previous_sha256  bytea NOT NULL,
    sha256           bytea NOT NULL,
    PRIMARY KEY (chain, number),
    CONSTRAINT seal_is_whole CHECK (num_nonnulls(batch, change_count, changes_sha256) IN (0, 3))
);
CREATE UNIQUE INDEX audit_record_of_batch ON audit_record (chain, batch) WHERE batch IS NOT NULL;

-- From a change to the record that seals it.
CREATE INDEX audit_record_seal ON audit_record (chain, batch) WHERE batch IS NOT NULL;

-- Where each chain ends: the lock that puts its records into one line.
CREATE TABLE audit_head (
    chain   integer PRIMARY KEY,
    number  bigint NOT NULL,
    sha256  bytea NOT NULL
) WITH (fillfactor = 10);

-- What is hashed, and lakthan.store.audit computes the same: fields separated by '|', null as nothing, instants in
-- microseconds (or seconds, where the column has no more) since 1970, hashes and serial numbers in hex. Free text
-- stands last in a change, and goes into a record as its SHA-256: so nothing has to be escaped.
CREATE FUNCTION audit_sha256(fresh audit_record) RETURNS bytea LANGUAGE sql STABLE
RETURN sha256(convert_to(
    encode((fresh).previous_sha256, 'hex')
    || '|' || (fresh).chain
    || '|' || (fresh).number
    || '|' || (extract(epoch FROM (fresh).at) * 1000000)::bigint
    || '|' || (fresh).event
    || '|' || encode(sha256(convert_to((fresh).actor, 'UTF8')), 'hex')
    || '|' || encode(sha256(convert_to((fresh).through, 'UTF8')), 'hex')
    || '|' || encode(sha256(convert_to((fresh).login, 'UTF8')), 'hex')
    || '|' || encode(sha256(convert_to((fresh).detail, 'UTF8')), 'hex')
    || '|' || coalesce((fresh).batch::text, '')
    || '|' || coalesce((fresh).change_count::text, '')
    || '|' || coalesce(encode((fresh).changes_sha256, 'hex'), ''), 'UTF8'));

-- Append a record: the caller fills chain, event, actor, and batch, change_count and changes_sha256 where it seals
-- changes; through and detail come from the settings of the transaction. Whoever comes second waits here for the
-- first one's commit; so this is the last thing that a transaction does.
CREATE FUNCTION extend_chain(fresh audit_record) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    head audit_head;
BEGIN
    LOOP
        SELECT * INTO head FROM audit_head h WHERE h.chain = fresh.chain FOR UPDATE;
        EXIT WHEN FOUND;
        INSERT INTO audit_head VALUES (fresh.chain, 0, decode(repeat('00', 32), 'hex')) ON CONFLICT DO NOTHING;
    END LOOP;
    fresh.number := head.number + 1;
    fresh.at := clock_timestamp();
    fresh.through := coalesce(fresh.through, nullif(current_setting('lakthan.through', true), ''), 'sql');
    fresh.detail := coalesce(fresh.detail, nullif(current_setting('lakthan.detail', true), ''), '{}');
    fresh.login := session_user;
    fresh.previous_sha256 := head.sha256;
    IF json_typeof(fresh.detail::json) <> 'object' THEN
        RAISE EXCEPTION USING ERRCODE = 'LK002', MESSAGE = 'the detail of an audit record is a JSON object';
    END IF;
    fresh.sha256 := audit_sha256(fresh);
    INSERT INTO audit_record VALUES (fresh.*);
    UPDATE audit_head h SET number = fresh.number, sha256 = fresh.sha256 WHERE h.chain = fresh.chain;
    RETURN fresh.number;
END
$$;

-- For the services: what they refused, who read, what came of an import. What a trigger records cannot be said here.
CREATE FUNCTION append_audit(of_chain integer, what text, who text, by_way_of text, details text) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    caller name := CASE current_setting('role') WHEN 'none' THEN session_user ELSE current_setting('role') END;
    fresh  audit_record;
BEGIN
    IF NOT may_act_for(of_chain) AND NOT pg_has_role(caller, 'lakthan_registrar', 'USAGE')
            AND NOT (pg_has_role(caller, 'lakthan_auditor', 'USAGE') AND what IN ('refused', 'read')) THEN
        RAISE EXCEPTION USING ERRCODE = 'LK006',
            MESSAGE = format('may not write %s into the audit chain %s', what, of_chain);
    ELSIF what IS NULL OR what !~ '^[a-z][a-z ]{0,30}$' OR what IN ('changes', 'authority', 'policy', 'credential') THEN
        RAISE EXCEPTION USING ERRCODE = 'LK002',
            MESSAGE = format('%s is no event that can be written by hand', coalesce(what, 'null'));
    ELSIF of_chain <> 0 AND NOT EXISTS (SELECT FROM authority a WHERE a.id = of_chain) THEN
        RAISE EXCEPTION USING ERRCODE = 'LK002', MESSAGE = format('there is no authority %s', of_chain);
    END IF;
    fresh.chain := of_chain;
    fresh.event := what;
    fresh.actor := who;
    fresh.through := by_way_of;
    fresh.detail := details;
    RETURN extend_chain(fresh);
END
$$;

-- Authorities, policies and credentials: each row that changes is a record with the row before and after. What is long
-- (a certificate, a post-quantum key) is on record as its SHA-256; what a credential is known by is not on record.
CREATE FUNCTION audit_row() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp SET timezone = 'UTC'
AS $$
DECLARE
    before jsonb := CASE TG_OP WHEN 'INSERT' THEN NULL ELSE short_row(to_jsonb(OLD)) END;
    after  jsonb := CASE TG_OP WHEN 'DELETE' THEN NULL ELSE short_row(to_jsonb(NEW)) END;
    shown  jsonb := coalesce(after, before);
    fresh  audit_record;
BEGIN
    IF before IS DISTINCT FROM after THEN
        fresh.chain := coalesce(CASE TG_TABLE_NAME WHEN 'authority' THEN shown ->> 'id' ELSE shown ->> 'authority_id' END,
                                '0')::integer;
        fresh.event := TG_ARGV[0];
        fresh.actor := coalesce(nullif(current_setting('lakthan.actor', true), ''), session_user);
        fresh.detail := coalesce(nullif(current_setting('lakthan.detail', true), ''), '{}')::jsonb
            || jsonb_build_object('table', TG_TABLE_NAME, 'before', before, 'after', after);
        PERFORM extend_chain(fresh);
    END IF;
    RETURN NULL;
END
$$;

CREATE FUNCTION short_row(whole jsonb) RETURNS jsonb LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT jsonb_object_agg(
        CASE WHEN length(e.value) > 130 AND e.value LIKE '\\x%' THEN e.key || '_sha256' ELSE e.key END,
        CASE WHEN length(e.value) > 130 AND e.value LIKE '\\x%'
             THEN to_jsonb(encode(sha256(decode(substr(e.value, 3), 'hex')), 'hex')) ELSE whole -> e.key END)
      FROM jsonb_each_text(whole) AS e
     WHERE e.key NOT IN ('token_sha256')
$$;

-- Deferred to the commit: the head of the chain is locked for a moment only, however long the transaction lasts.
CREATE CONSTRAINT TRIGGER audit_row AFTER INSERT OR UPDATE OR DELETE ON authority
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION audit_row('authority');
CREATE CONSTRAINT TRIGGER audit_row AFTER INSERT OR UPDATE OR DELETE ON authority_name
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION audit_row('authority');
CREATE CONSTRAINT TRIGGER audit_row AFTER INSERT OR UPDATE OR DELETE ON authority_key
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION audit_row('authority');
CREATE CONSTRAINT TRIGGER audit_row AFTER INSERT OR UPDATE OR DELETE ON authority_certificate
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION audit_row('authority');
CREATE CONSTRAINT TRIGGER audit_row AFTER INSERT OR UPDATE OR DELETE ON authority_crl
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION audit_row('crl');
CREATE CONSTRAINT TRIGGER audit_row AFTER INSERT OR UPDATE OR DELETE ON authority_policy
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION audit_row('policy');
CREATE CONSTRAINT TRIGGER audit_row AFTER INSERT OR UPDATE OR DELETE ON authority_login
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION audit_row('credential');
CREATE CONSTRAINT TRIGGER audit_row AFTER INSERT OR UPDATE OR DELETE ON credential
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION audit_row('credential');

-- ---------------------------------------------------------------------------------------------------------------
-- Status changes get a batch (the statement that brought them), the version before, and the CRL that they came from.

-- All that was there is batch 1: a constant default writes no row anew.
ALTER TABLE status_change
    ADD COLUMN batch bigint NOT NULL DEFAULT 1,
    ADD COLUMN previous_version bigint,
    ADD COLUMN crl_scope integer;
CREATE SEQUENCE change_batch START 2 OWNED BY status_change.batch;
ALTER TABLE status_change ALTER COLUMN batch SET DEFAULT currval('change_batch');

CREATE FUNCTION draw_batch() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    PERFORM nextval('change_batch');
    RETURN NULL;
END
$$;
CREATE TRIGGER draw_batch BEFORE INSERT ON status_change FOR EACH STATEMENT EXECUTE FUNCTION draw_batch();

-- A change as octets, and lakthan.store.audit_verify computes the same: integers in network order; instants in
-- microseconds since 2000, the greatest number for none (an infinite instant is never recorded); what is not there as -1
-- for a reason and 0 for a version or a scope; what has no fixed length behind its length.
CREATE FUNCTION change_octets(
    version bigint, batch bigint, previous_version bigint, authority_id integer, serial_number bytea, change change_kind,
    revocation_time timestamptz, revocation_reason smallint, invalidity_date timestamptz, not_after timestamptz,
    certificate_sha256 bytea, crl_scope integer, recorded_at timestamptz, actor text
) RETURNS bytea LANGUAGE sql STABLE
RETURN int8send(version) || int8send(batch) || int8send(coalesce(previous_version, 0)) || int4send(authority_id)
    || int4send(coalesce(crl_scope, 0)) || int2send(coalesce(revocation_reason, -1::smallint))
    || CASE change WHEN 'issue' THEN '\x01'::bytea WHEN 'revoke' THEN '\x02'::bytea WHEN 'hold' THEN '\x03'::bytea
                   WHEN 'unhold' THEN '\x04'::bytea END
    || timestamptz_send(recorded_at) || coalesce(timestamptz_send(revocation_time), '\x7fffffffffffffff'::bytea)
    || coalesce(timestamptz_send(invalidity_date), '\x7fffffffffffffff'::bytea)
    || coalesce(timestamptz_send(not_after), '\x7fffffffffffffff'::bytea)
    || int4send(octet_length(serial_number)) || serial_number
    || int4send(coalesce(octet_length(certificate_sha256), 0)) || coalesce(certificate_sha256, ''::bytea)
    || int4send(octet_length(actor)) || convert_to(actor, 'UTF8');

-- As in the first schema, with the question for whom first, the version before, and the notification in seal_changes().
CREATE OR REPLACE FUNCTION apply_status_change() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp SET timezone = 'UTC'
AS $$
DECLARE
    who   text;
    old   certificate_status;
    known boolean;
BEGIN
    who := format('serial number %s of authority %s', encode(NEW.serial_number, 'hex'), NEW.authority_id);
    IF NOT may_act_for(NEW.authority_id) THEN
        RAISE EXCEPTION USING ERRCODE = 'LK006',
            MESSAGE = format('%s: may not act for authority %s', who, NEW.authority_id);
    END IF;

    -- OCSP knows no fractions of a second (RFC 6960 §4.2.1 with RFC 5280 §4.1.2.5.2); never round into the future.
    NEW.revocation_time := date_trunc('second', NEW.revocation_time);
    NEW.invalidity_date := date_trunc('second', NEW.invalidity_date);
    NEW.not_after := date_trunc('second', NEW.not_after);
    NEW.recorded_at := now();

    IF NOT (coalesce(isfinite(NEW.revocation_time), true) AND coalesce(isfinite(NEW.invalidity_date), true)
            AND coalesce(isfinite(NEW.not_after), true)) THEN
        RAISE EXCEPTION USING ERRCODE = 'LK002', MESSAGE = format('%s: an infinite time cannot be recorded', who);
    END IF;
    IF NEW.change IN ('issue', 'unhold') THEN
        IF NEW.revocation_time IS NOT NULL OR NEW.revocation_reason IS NOT NULL OR NEW.invalidity_date IS NOT NULL THEN
            RAISE EXCEPTION USING ERRCODE = 'LK002',
                MESSAGE = format('%s: %s takes no revocation time, reason or invalidity date', who, NEW.change);
        END IF;
    ELSE
        NEW.revocation_time := coalesce(NEW.revocation_time, date_trunc('second', now()));
        IF NEW.revocation_time > clock_timestamp() THEN
            RAISE EXCEPTION USING ERRCODE = 'LK002',
                MESSAGE = format('%s: the revocation time %s lies in the future; a revocation counts from now or from '
                                 'an earlier instant', who, NEW.revocation_time);
        END IF;
    END IF;
    IF NEW.change = 'hold' THEN
        IF NEW.revocation_reason <> 6 THEN
            RAISE EXCEPTION USING ERRCODE = 'LK002',
                MESSAGE = format('%s: a hold has the reason certificateHold (6) and no other', who);
        END IF;
        NEW.revocation_reason := 6;
    ELSIF NEW.change = 'revoke' AND NEW.revocation_reason NOT IN (0, 1, 2, 3, 4, 5, 9, 10) THEN
        RAISE EXCEPTION USING ERRCODE = 'LK002',
            MESSAGE = format('%s: %s is no reason for a revocation (0 to 5, 9 and 10 are; to suspend a certificate, '
                             'hold it)', who, NEW.revocation_reason);
    END IF;

    -- Two writers may both find nothing and both insert; the slower one then comes round and finds the row.
    LOOP
        SELECT * INTO old FROM certificate_status s
            WHERE s.authority_id = NEW.authority_id AND s.serial_number = NEW.serial_number FOR UPDATE;
        known := FOUND;

        CASE NEW.change
        WHEN 'issue' THEN
            IF known AND old.cert_status = 'good' AND old.not_after IS NOT DISTINCT FROM NEW.not_after
                     AND old.certificate_sha256 IS NOT DISTINCT FROM NEW.certificate_sha256 THEN
                RETURN NULL;  -- told twice: nothing changes and nothing is recorded
            ELSIF known THEN
                RAISE EXCEPTION USING ERRCODE = 'LK001',
                    MESSAGE = format('%s is already on record as %s%s; it cannot be issued again', who, old.cert_status,
                                     CASE WHEN old.cert_status = 'good' THEN ' with another notAfter or hash' ELSE '' END);
            END IF;
        WHEN 'revoke' THEN
            IF old.cert_status = 'revoked' AND old.revocation_reason IS DISTINCT FROM 6 THEN
                RAISE EXCEPTION USING ERRCODE = 'LK001',
                    MESSAGE = format('%s was already revoked at %s; a revocation is final', who, old.revocation_time);
            END IF;
        WHEN 'hold' THEN
            IF NOT known THEN
                RAISE EXCEPTION USING ERRCODE = 'LK001',
                    MESSAGE = format('%s is not on record; announce it with issue before holding it', who);
            ELSIF old.cert_status = 'revoked' THEN
                RAISE EXCEPTION USING ERRCODE = 'LK001', MESSAGE = format('%s is already %s; only a good certificate '
                    'can be held', who, CASE old.revocation_reason WHEN 6 THEN 'held' ELSE 'revoked' END);
            END IF;
        WHEN 'unhold' THEN
            IF old.revocation_reason IS DISTINCT FROM 6 THEN
                RAISE EXCEPTION USING ERRCODE = 'LK001', MESSAGE = format('%s is %s; only a held certificate can be '
                    'released', who, CASE WHEN NOT known THEN 'not on record'
                                          WHEN old.cert_status = 'good' THEN 'good' ELSE 'revoked for good' END);
            END IF;
        END CASE;

        NEW.version := nextval('status_version');
        NEW.previous_version := old.version;
        IF known THEN
            UPDATE certificate_status s
                SET cert_status = CASE WHEN NEW.change IN ('revoke', 'hold') THEN 'revoked' ELSE 'good' END::cert_status,
                    revocation_time = NEW.revocation_time,
                    revocation_reason = NEW.revocation_reason,
                    invalidity_date = NEW.invalidity_date,
                    not_after = coalesce(NEW.not_after, old.not_after),
                    version = NEW.version,
                    certificate_sha256 = coalesce(NEW.certificate_sha256, old.certificate_sha256)
                WHERE s.authority_id = NEW.authority_id AND s.serial_number = NEW.serial_number;
            EXIT;
        END IF;
        INSERT INTO certificate_status (authority_id, serial_number, cert_status, revocation_time, revocation_reason,
                                        invalidity_date, not_after, version, certificate_sha256)
            VALUES (NEW.authority_id, NEW.serial_number,
                    CASE NEW.change WHEN 'issue' THEN 'good' ELSE 'revoked' END::cert_status, NEW.revocation_time,
                    NEW.revocation_reason, NEW.invalidity_date, NEW.not_after, NEW.version, NEW.certificate_sha256)
            ON CONFLICT DO NOTHING;
        EXIT WHEN FOUND;
    END LOOP;
    RETURN NEW;
END
$$;

-- Rows with a version of their own come from a function of the schema, which has done the same for many rows at once.
DROP TRIGGER apply_status_change ON status_change;
CREATE TRIGGER apply_status_change BEFORE INSERT ON status_change
    FOR EACH ROW WHEN (NEW.version IS NULL) EXECUTE FUNCTION apply_status_change();

-- Such a function says `SET lakthan.by_function = 'on'` in its head. It keeps the owner from slips, not from purpose;
-- no other role has any right to write here.
DROP TRIGGER not_by_hand ON certificate_status;
CREATE TRIGGER not_by_hand BEFORE INSERT OR UPDATE OR DELETE ON certificate_status
    FOR EACH STATEMENT WHEN (pg_trigger_depth() = 0
                             AND current_setting('lakthan.by_function', true) IS DISTINCT FROM 'on')
    EXECUTE FUNCTION refuse();

-- One record for each authority and statement, and the notifications. certificate_status is written by now.
--   A first issue makes nothing stale: responders never keep an answer about a certificate they do not know.
--   Of several changes of one certificate the last is told. More than 1,000 are told as one: forget all of them.
CREATE FUNCTION seal_changes() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp SET timezone = 'UTC'
AS $$
DECLARE
    sealed record;
    fresh  audit_record;
BEGIN
    FOR sealed IN
        SELECT g.authority_id, g.batch, sum(g.changes) AS changes, sum(g.loud) AS loud, max(g.newest) AS newest,
               CASE WHEN min(g.first_actor) = max(g.last_actor) THEN min(g.first_actor) ELSE 'several' END AS actor,
               sha256(string_agg(g.changes_sha256, '' ORDER BY g.thousand)) AS changes_sha256
          FROM (SELECT c.authority_id, c.batch, c.version / 1000 AS thousand, count(*) AS changes,
                       count(*) FILTER (WHERE c.change <> 'issue') AS loud, max(c.version) AS newest,
                       min(c.actor COLLATE "C") AS first_actor, max(c.actor COLLATE "C") AS last_actor,
                       sha256(string_agg(change_octets(c.version, c.batch, c.previous_version, c.authority_id,
                           c.serial_number, c.change, c.revocation_time, c.revocation_reason, c.invalidity_date,
                           c.not_after, c.certificate_sha256, c.crl_scope, c.recorded_at, c.actor), '' ORDER BY c.version))
                           AS changes_sha256
                  FROM new_changes c GROUP BY c.authority_id, c.batch, c.version / 1000) AS g
         GROUP BY g.authority_id, g.batch ORDER BY g.authority_id, g.batch
    LOOP
        PERFORM FROM authority a WHERE a.id = sealed.authority_id FOR KEY SHARE;
        IF NOT FOUND THEN
            RAISE EXCEPTION USING ERRCODE = 'foreign_key_violation',
                MESSAGE = format('there is no authority %s', sealed.authority_id);
        END IF;
        IF sealed.loud > 1000 THEN
            PERFORM pg_notify('lakthan_status', json_build_object('authority_id', sealed.authority_id, 'all', true,
                'version', sealed.newest, 'changed_at', clock_timestamp())::text);
        ELSIF sealed.loud > 0 THEN
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
               FROM (SELECT s.* FROM new_changes c JOIN certificate_status s USING (authority_id, serial_number, version)
                      WHERE c.authority_id = sealed.authority_id AND c.change <> 'issue' ORDER BY version) AS told;
        END IF;
        fresh := NULL;
        fresh.chain := sealed.authority_id;
        -- What brought the changes may be told: a CRL or an import of a list.
        fresh.event := CASE WHEN current_setting('lakthan.event', true) IN ('crl', 'import')
                            THEN current_setting('lakthan.event') ELSE 'changes' END;
        fresh.actor := sealed.actor;
        fresh.batch := sealed.batch;
        fresh.change_count := sealed.changes;
        fresh.changes_sha256 := sealed.changes_sha256;
        PERFORM extend_chain(fresh);
    END LOOP;
    RETURN NULL;
END
$$;
CREATE TRIGGER seal_changes AFTER INSERT ON status_change REFERENCING NEW TABLE AS new_changes
    FOR EACH STATEMENT EXECUTE FUNCTION seal_changes();

-- What was there before this revision is linked, as what comes is, and sealed as it is found. Who wants a certificate's
-- history begins with its status and follows the links, so no index by certificate is needed.
ALTER TABLE status_change DISABLE TRIGGER append_only;
UPDATE status_change c SET previous_version = p.previous_version
  FROM (SELECT version, lag(version) OVER (PARTITION BY authority_id, serial_number ORDER BY version) AS previous_version
          FROM status_change) AS p
 WHERE p.version = c.version AND p.previous_version IS NOT NULL;
ALTER TABLE status_change ENABLE ALWAYS TRIGGER append_only;
DROP INDEX status_change_of_certificate;

DO $$
DECLARE
    fresh audit_record;
BEGIN
    FOR fresh.chain, fresh.change_count, fresh.changes_sha256 IN
        SELECT g.authority_id, sum(g.changes), sha256(string_agg(g.changes_sha256, '' ORDER BY g.thousand))
          FROM (SELECT c.authority_id, c.version / 1000 AS thousand, count(*) AS changes,
                       sha256(string_agg(change_octets(c.version, c.batch, c.previous_version, c.authority_id,
                           c.serial_number, c.change, c.revocation_time, c.revocation_reason, c.invalidity_date,
                           c.not_after, c.certificate_sha256, c.crl_scope, c.recorded_at, c.actor), '' ORDER BY c.version))
                           AS changes_sha256
                  FROM status_change c GROUP BY c.authority_id, c.version / 1000) AS g
         GROUP BY g.authority_id ORDER BY g.authority_id
    LOOP
        fresh.event := 'changes';
        fresh.actor := 'lakthan db migrate';
        fresh.through := 'migration';
        fresh.detail := '{"revision": "0002"}';
        fresh.batch := 1;
        PERFORM extend_chain(fresh);
    END LOOP;
END
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- What was recorded stays, even when the owner of the tables slips.

-- The head moves only forward, and only to a record that is there.
CREATE FUNCTION head_follows_the_record() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    IF NEW.chain <> OLD.chain OR NEW.number <> OLD.number + 1 OR NOT EXISTS (
            SELECT FROM audit_record r WHERE r.chain = NEW.chain AND r.number = NEW.number AND r.sha256 = NEW.sha256) THEN
        RAISE EXCEPTION USING ERRCODE = 'LK003', MESSAGE = 'UPDATE on audit_head is refused: it follows audit_record';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER follows_the_record BEFORE UPDATE ON audit_head
    FOR EACH ROW EXECUTE FUNCTION head_follows_the_record();
CREATE TRIGGER append_only BEFORE DELETE OR TRUNCATE ON audit_head FOR EACH STATEMENT EXECUTE FUNCTION refuse();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_record
    FOR EACH STATEMENT EXECUTE FUNCTION refuse();
ALTER TABLE audit_head ENABLE ALWAYS TRIGGER follows_the_record;
ALTER TABLE audit_head ENABLE ALWAYS TRIGGER append_only;
ALTER TABLE audit_record ENABLE ALWAYS TRIGGER append_only;

-- ---------------------------------------------------------------------------------------------------------------
-- Rights follow the role.

REVOKE EXECUTE ON FUNCTION acting_authority(), may_act_for(integer), demand_may_act_for(integer),
    find_credential(text, bytea), audit_sha256(audit_record), extend_chain(audit_record),
    append_audit(integer, text, text, text, text), audit_row(), short_row(jsonb), draw_batch(), seal_changes(),
    head_follows_the_record(),
    change_octets(bigint, bigint, bigint, integer, bytea, change_kind, timestamptz, smallint, timestamptz, timestamptz,
                  bytea, integer, timestamptz, text)
    FROM PUBLIC;

GRANT USAGE ON SCHEMA public TO lakthan_publisher, lakthan_registrar, lakthan_auditor;
GRANT EXECUTE ON FUNCTION acting_authority(), may_act_for(integer), append_audit(integer, text, text, text, text)
    TO lakthan_publisher, lakthan_registrar, lakthan_auditor, lakthan_registry;
GRANT EXECUTE ON FUNCTION find_credential(text, bytea) TO lakthan_publisher, lakthan_registrar, lakthan_auditor;
GRANT SELECT ON SEQUENCE change_batch TO lakthan_publisher, lakthan_registry;  -- for the column's default

-- Version, batch, time of record and the version before are the database's own.
REVOKE INSERT ON status_change FROM lakthan_registry;
GRANT INSERT (authority_id, serial_number, change, revocation_time, revocation_reason, invalidity_date, not_after,
              certificate_sha256, actor) ON status_change TO lakthan_registry, lakthan_publisher;

GRANT SELECT ON ALL TABLES IN SCHEMA public TO lakthan_registry, lakthan_registrar, lakthan_auditor;

GRANT SELECT ON authority, authority_name, authority_key, authority_certificate, authority_crl, authority_policy,
    certificate_status, status_change, audit_record, audit_head, idempotency_key TO lakthan_publisher;
GRANT SELECT (id, name, role, authority_id, scopes, expires_at, revoked_at, created_by, created_at) ON credential
    TO lakthan_publisher;
GRANT INSERT (credential_id, key, request_sha256), UPDATE (versions), DELETE ON idempotency_key
    TO lakthan_publisher, lakthan_registry;

-- The registrar adds; to take away a name or a key, or to revoke a CA, is the operator's.
GRANT INSERT (name) ON authority TO lakthan_registrar;
GRANT INSERT ON authority_name, authority_key, authority_certificate TO lakthan_registrar;
GRANT INSERT, UPDATE ON authority_policy TO lakthan_registrar, lakthan_registry;
GRANT INSERT, DELETE ON authority_login TO lakthan_registrar, lakthan_registry;
GRANT INSERT (name, role, authority_id, scopes, token_sha256, certificate_sha256, expires_at, created_by),
    UPDATE (revoked_at) ON credential TO lakthan_registrar, lakthan_registry;

-- ---------------------------------------------------------------------------------------------------------------
-- Row-level security: the second lock. acting_authority() stands in a sub-select, so that a statement asks it once.

DO $$
DECLARE
    confined text;
    own      text;
BEGIN
    FOREACH confined IN ARRAY ARRAY['authority', 'authority_name', 'authority_key', 'authority_certificate',
            'authority_crl', 'authority_policy', 'authority_login', 'certificate_status', 'status_change',
            'audit_record', 'audit_head', 'credential', 'idempotency_key'] LOOP
        own := CASE confined WHEN 'authority' THEN 'id' WHEN 'audit_record' THEN 'chain' WHEN 'audit_head' THEN 'chain'
                             ELSE 'authority_id' END;
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', confined);
        EXECUTE format('CREATE POLICY all_rows ON %I FOR SELECT TO lakthan_registrar, lakthan_auditor USING (true)',
                       confined);
        EXECUTE format('CREATE POLICY operator ON %I TO lakthan_registry USING (true) WITH CHECK (true)', confined);
        IF confined <> 'idempotency_key' THEN
            EXECUTE format('CREATE POLICY own_rows ON %I FOR SELECT TO lakthan_publisher '
                           'USING (%I = (SELECT acting_authority()))', confined, own);
        END IF;
    END LOOP;
    FOREACH confined IN ARRAY ARRAY['authority', 'authority_name', 'authority_key', 'authority_certificate',
            'authority_crl', 'certificate_status'] LOOP
        EXECUTE format('CREATE POLICY responder ON %I FOR SELECT TO lakthan_responder USING (true)', confined);
    END LOOP;
    FOREACH confined IN ARRAY ARRAY['authority', 'authority_name', 'authority_key', 'authority_certificate',
            'authority_policy', 'authority_login', 'credential'] LOOP
        EXECUTE format('CREATE POLICY registrar_adds ON %I FOR INSERT TO lakthan_registrar WITH CHECK (true)', confined);
    END LOOP;
END
$$;

CREATE POLICY own_changes ON status_change FOR INSERT TO lakthan_publisher
    WITH CHECK (authority_id = (SELECT acting_authority()));

CREATE POLICY registrar_changes ON authority_policy FOR UPDATE TO lakthan_registrar USING (true) WITH CHECK (true);
CREATE POLICY registrar_removes ON authority_login FOR DELETE TO lakthan_registrar USING (true);

-- A credential is revoked once and stays so; RESTRICTIVE, so that it binds the operator too.
CREATE POLICY registrar_revokes ON credential FOR UPDATE TO lakthan_registrar USING (true);
CREATE POLICY revoked_for_good ON credential AS RESTRICTIVE FOR UPDATE
    USING (revoked_at IS NULL) WITH CHECK (revoked_at IS NOT NULL);

-- A key belongs to a credential that the caller can see; it is kept for a day at least, whoever tidies up.
CREATE POLICY own_keys ON idempotency_key TO lakthan_publisher
    USING (EXISTS (SELECT FROM credential c WHERE c.id = credential_id))
    WITH CHECK (EXISTS (SELECT FROM credential c WHERE c.id = credential_id));
CREATE POLICY kept_for_a_day ON idempotency_key AS RESTRICTIVE FOR DELETE
    USING (at < now() - interval '24 hours');
CREATE POLICY written_once ON idempotency_key AS RESTRICTIVE FOR UPDATE USING (versions IS NULL) WITH CHECK (true);

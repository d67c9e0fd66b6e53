-- The first schema. Built-ins only: no extension beyond plpgsql, so that every PostgreSQL since 15 can hold it.
--
-- Two rules shape it:
--   * a status changes in one way only: a row is appended to status_change, and its trigger does the rest;
--   * what was recorded stays: status_change, timestamp_token, serial_epoch, tsu_freeze and token_retention cannot be
--     edited or emptied; whole months of timestamp_token can be dropped by the owner, which is on record too.

-- ---------------------------------------------------------------------------------------------------------------
-- Roles. They belong to the whole cluster, so another database may have made them, perhaps at this very moment.

DO $$
DECLARE
    wanted text;
BEGIN
    FOREACH wanted IN ARRAY ARRAY['lakthan_responder', 'lakthan_tsa', 'lakthan_registry'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = wanted) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN', wanted);
            EXCEPTION WHEN duplicate_object OR unique_violation THEN
                NULL;  -- the other database was faster
            END;
        END IF;
    END LOOP;
END
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- Values

CREATE TYPE cert_status AS ENUM ('good', 'revoked');
CREATE TYPE change_kind AS ENUM ('issue', 'revoke', 'hold', 'unhold');

-- The content octets of the minimal DER INTEGER: two's complement, big endian, no superfluous first octet.
CREATE DOMAIN serial_number AS bytea
    CONSTRAINT serial_number_is_a_minimal_integer CHECK (
        octet_length(VALUE) BETWEEN 1 AND 128
        AND CASE WHEN octet_length(VALUE) > 1 THEN
            NOT (get_byte(VALUE, 0) = 0 AND get_byte(VALUE, 1) < 128)
            AND NOT (get_byte(VALUE, 0) = 255 AND get_byte(VALUE, 1) >= 128)
        ELSE true END
    );

-- ---------------------------------------------------------------------------------------------------------------
-- Authorities: whose certificates are answered for, and every name and key that a CertID can be made of.
-- Responders load these tables whole and derive the hashes themselves, so no hash is stored.

CREATE TABLE authority (
    id          integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name        text NOT NULL UNIQUE CONSTRAINT authority_has_a_name CHECK (name <> '' AND name = btrim(name)),
    created_at  timestamptz NOT NULL DEFAULT now(),
    -- Set when the CA itself was revoked or its key compromised: all its certificates then are (RFC 6960 §2.7).
    revocation_time    timestamptz(0),
    revocation_reason  smallint,
    CONSTRAINT only_revoked_has_a_reason CHECK (revocation_time IS NOT NULL OR revocation_reason IS NULL)
);

-- The CRL that an authority's statuses come from, where they do: the current one.
CREATE TABLE authority_crl (
    authority_id  integer PRIMARY KEY REFERENCES authority ON DELETE CASCADE,
    url           text,
    crl_number    serial_number,
    this_update   timestamptz(0) NOT NULL,
    next_update   timestamptz(0) NOT NULL,
    CONSTRAINT crl_ends_after_it_begins CHECK (next_update > this_update)
);

-- Every DER encoding of the issuer Name that a CertID may be hashed from.
CREATE TABLE authority_name (
    authority_id  integer NOT NULL REFERENCES authority ON DELETE CASCADE,
    name          bytea NOT NULL
);

-- The content of each subjectPublicKey BIT STRING without the unused-bits octet: the current key and the earlier ones.
CREATE TABLE authority_key (
    authority_id  integer NOT NULL REFERENCES authority ON DELETE CASCADE,
    public_key    bytea NOT NULL
);

CREATE TABLE authority_certificate (
    authority_id  integer NOT NULL REFERENCES authority ON DELETE CASCADE,
    certificate   bytea NOT NULL,
    added_at      timestamptz NOT NULL DEFAULT now()
);

-- Unique by hash, because post-quantum keys and certificates do not fit into an index entry.
CREATE UNIQUE INDEX authority_name_once ON authority_name (authority_id, sha256(name));
CREATE UNIQUE INDEX authority_key_once ON authority_key (authority_id, sha256(public_key));
CREATE UNIQUE INDEX authority_certificate_once ON authority_certificate (authority_id, sha256(certificate));

CREATE FUNCTION notify_authority() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    PERFORM pg_notify('lakthan_authority', '');  -- one per transaction: equal notifications are folded
    RETURN NULL;
END
$$;

CREATE TRIGGER notify_authority AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON authority
    FOR EACH STATEMENT EXECUTE FUNCTION notify_authority();
CREATE TRIGGER notify_authority AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON authority_name
    FOR EACH STATEMENT EXECUTE FUNCTION notify_authority();
CREATE TRIGGER notify_authority AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON authority_key
    FOR EACH STATEMENT EXECUTE FUNCTION notify_authority();
CREATE TRIGGER notify_authority AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON authority_certificate
    FOR EACH STATEMENT EXECUTE FUNCTION notify_authority();
CREATE TRIGGER notify_authority AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON authority_crl
    FOR EACH STATEMENT EXECUTE FUNCTION notify_authority();

-- ---------------------------------------------------------------------------------------------------------------
-- Status: what is true now. Only the trigger of status_change writes it.

CREATE TABLE certificate_status (
    authority_id       integer NOT NULL REFERENCES authority,
    serial_number      serial_number NOT NULL,
    cert_status        cert_status NOT NULL,
    revocation_time    timestamptz(0),
    revocation_reason  smallint,  -- CRLReason, RFC 5280 §5.3.1; 6 (certificateHold) is a suspension
    invalidity_date    timestamptz(0),
    not_after          timestamptz(0),
    version            bigint NOT NULL,
    certificate_sha256 bytea CONSTRAINT certificate_sha256_is_a_sha256 CHECK (octet_length(certificate_sha256) = 32),
    PRIMARY KEY (authority_id, serial_number),
    CONSTRAINT only_revoked_has_a_time CHECK ((cert_status = 'revoked') = (revocation_time IS NOT NULL)),
    CONSTRAINT only_revoked_has_a_reason CHECK (cert_status = 'revoked' OR revocation_reason IS NULL)
);

-- Every change ever made, in the order of its version for each certificate.
CREATE TABLE status_change (
    version            bigint PRIMARY KEY,
    authority_id       integer NOT NULL REFERENCES authority,
    serial_number      serial_number NOT NULL,
    change             change_kind NOT NULL,
    revocation_time    timestamptz(0),
    revocation_reason  smallint,
    invalidity_date    timestamptz(0),
    not_after          timestamptz(0),
    certificate_sha256 bytea,
    actor              text NOT NULL CONSTRAINT change_has_an_actor CHECK (btrim(actor) <> ''),
    recorded_at        timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX status_change_of_certificate ON status_change (authority_id, serial_number, version);

-- A sequence of its own and not an identity column: the number must be drawn after the status row is locked, so that
-- the versions of one certificate grow in the order in which its changes commit.
CREATE SEQUENCE status_version OWNED BY status_change.version;

-- Refusals raise SQLSTATE class LK, which the client turns into ChangeRefused:
--   LK001 the state of the certificate forbids it     LK002 the change itself is not well formed
--   LK003 the table is append-only or not written by hand
--   LK004 the time-stamping unit is frozen             LK005 no tokens of that month are recorded
CREATE FUNCTION apply_status_change() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp SET timezone = 'UTC'
AS $$
DECLARE
    who   text := format('serial number %s of authority %s', encode(NEW.serial_number, 'hex'), NEW.authority_id);
    old   certificate_status;
    known boolean;
    fresh certificate_status;
BEGIN
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
        fresh.authority_id := NEW.authority_id;
        fresh.serial_number := NEW.serial_number;
        fresh.cert_status := CASE WHEN NEW.change IN ('revoke', 'hold') THEN 'revoked' ELSE 'good' END;
        fresh.revocation_time := NEW.revocation_time;
        fresh.revocation_reason := NEW.revocation_reason;
        fresh.invalidity_date := NEW.invalidity_date;
        fresh.not_after := coalesce(NEW.not_after, old.not_after);
        fresh.version := NEW.version;
        fresh.certificate_sha256 := coalesce(NEW.certificate_sha256, old.certificate_sha256);
        IF known THEN
            UPDATE certificate_status s
                SET (cert_status, revocation_time, revocation_reason, invalidity_date, not_after, version,
                     certificate_sha256)
                  = (fresh.cert_status, fresh.revocation_time, fresh.revocation_reason, fresh.invalidity_date,
                     fresh.not_after, fresh.version, fresh.certificate_sha256)
                WHERE s.authority_id = NEW.authority_id AND s.serial_number = NEW.serial_number;
            EXIT;
        END IF;
        INSERT INTO certificate_status VALUES (fresh.*) ON CONFLICT DO NOTHING;
        EXIT WHEN FOUND;
    END LOOP;

    -- A first issue makes nothing stale: responders never keep an answer about a certificate they do not know.
    IF NEW.change <> 'issue' THEN
        PERFORM pg_notify('lakthan_status', json_build_object(
            'authority_id', fresh.authority_id,
            'serial_number', encode(fresh.serial_number, 'hex'),
            'cert_status', fresh.cert_status,
            'revocation_time', fresh.revocation_time,
            'revocation_reason', fresh.revocation_reason,
            'invalidity_date', fresh.invalidity_date,
            'not_after', fresh.not_after,
            'certificate_sha256', encode(fresh.certificate_sha256, 'hex'),
            'version', fresh.version)::text);
    END IF;
    RETURN NEW;
END
$$;

CREATE TRIGGER apply_status_change BEFORE INSERT ON status_change
    FOR EACH ROW EXECUTE FUNCTION apply_status_change();

-- ---------------------------------------------------------------------------------------------------------------
-- Time-stamps

-- Each start of a time-stamping unit takes an epoch; the epoch is the first part of every serial number it gives.
CREATE TABLE serial_epoch (
    epoch      integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tsu        text NOT NULL CONSTRAINT epoch_has_a_tsu CHECK (tsu <> ''),
    leased_at  timestamptz NOT NULL DEFAULT now()
);

-- The token log, a partition for each month of gen_time. A serial number begins with its month: two octets, 0x4000 plus
-- the months since January 2000 (lakthan_tsa.serials). So the partitions are ranges of serial numbers, a number can be
-- in one of them only, and the primary key holds for the whole log: no serial number twice, whatever the unit believes
-- (RFC 3161 §2.4.2). A month that was dropped after its retention can never be stamped again.
CREATE TABLE timestamp_token (
    serial_number   serial_number PRIMARY KEY,
    gen_time        timestamptz NOT NULL,
    policy          text NOT NULL,
    hash_algorithm  text NOT NULL,
    hashed_message  bytea NOT NULL,
    tsu             text NOT NULL,
    clock_state     text NOT NULL,
    clock_bound_us  bigint,  -- null: the clock could not tell how far it may be off
    token_sha256    bytea NOT NULL CONSTRAINT token_sha256_is_a_sha256 CHECK (octet_length(token_sha256) = 32),
    recorded_at     timestamptz NOT NULL DEFAULT now()
) PARTITION BY RANGE (serial_number);
-- Rows come in the order of gen_time, nearly, so an index of block ranges finds a time span and costs next to nothing.
CREATE INDEX timestamp_token_gen_time ON timestamp_token USING brin (gen_time);

-- Which months were dropped, by whom. The greatest drop_before is the oldest instant that may still be stamped.
CREATE TABLE token_retention (
    drop_before  timestamptz NOT NULL,
    partitions   text[] NOT NULL,
    tokens       bigint NOT NULL,
    actor        text NOT NULL CONSTRAINT retention_has_an_actor CHECK (btrim(actor) <> ''),
    dropped_at   timestamptz NOT NULL DEFAULT now()
);

-- What happened to the clock of a machine that stamps, read from that clock: `at` may be wrong, recorded_at is ours.
CREATE TABLE clock_event (
    at           timestamptz NOT NULL,
    host         text NOT NULL,
    event        text NOT NULL CONSTRAINT event_is_one_of CHECK (
                     event IN ('sync', 'warning', 'loss', 'step', 'leap second', 'measured')),
    state        text NOT NULL,
    offset_us    bigint,  -- ahead of UTC; for a step, by how much it was set; null: nobody can tell
    bound_us     bigint,  -- null: as above
    detail       text NOT NULL,
    recorded_at  timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX clock_event_at ON clock_event (at);

-- A time-stamping unit that must stamp no more, for good; tsu is its name in timestamp_token.
CREATE TABLE tsu_freeze (
    tsu        text PRIMARY KEY CONSTRAINT tsu_is_the_sha256_of_a_certificate CHECK (tsu ~ '^[0-9a-f]{64}$'),
    reason     text NOT NULL CONSTRAINT freeze_has_a_reason CHECK (btrim(reason) <> ''),
    actor      text NOT NULL CONSTRAINT freeze_has_an_actor CHECK (btrim(actor) <> ''),
    frozen_at  timestamptz NOT NULL DEFAULT now()
);

-- The partition for the month of an instant. A unit makes those that it needs, near the present and nowhere else.
CREATE FUNCTION make_token_partition(instant timestamptz) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp SET timezone = 'UTC'
AS $$
DECLARE
    month  timestamptz := date_trunc('month', instant);
    number integer := (extract(year FROM instant) - 2000) * 12 + extract(month FROM instant) - 1;
    name   text := 'timestamp_token_' || to_char(instant, 'YYYY_MM');
BEGIN
    IF to_regclass(format('public.%I', name)) IS NOT NULL THEN
        RETURN;
    END IF;
    IF instant NOT BETWEEN now() - interval '40 days' AND now() + interval '40 days' THEN
        RAISE EXCEPTION USING ERRCODE = 'LK005', MESSAGE = format('no tokens of %s are recorded: the database''s clock '
            'says %s; set the clock that is wrong', to_char(instant, 'YYYY-MM-DD'), to_char(now(), 'YYYY-MM-DD'));
    ELSIF EXISTS (SELECT FROM token_retention WHERE drop_before > month) THEN
        RAISE EXCEPTION USING ERRCODE = 'LK005', MESSAGE = format('the token records of %s were dropped after their '
            'retention; nothing can be stamped in that month any more', to_char(instant, 'YYYY-MM'));
    END IF;
    -- Made beside the log and then attached: that waits for no reader and no writer, only for somebody who does the same.
    LOCK TABLE timestamp_token IN SHARE UPDATE EXCLUSIVE MODE;
    IF to_regclass(format('public.%I', name)) IS NOT NULL THEN
        RETURN;
    END IF;
    EXECUTE format('CREATE TABLE public.%I (LIKE timestamp_token INCLUDING DEFAULTS INCLUDING CONSTRAINTS, '
                   'CONSTRAINT gen_time_is_in_the_month CHECK (gen_time >= %L AND gen_time < %L))',
                   name, month, month + interval '1 month');
    EXECUTE format('CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON public.%I '
                   'FOR EACH STATEMENT EXECUTE FUNCTION refuse()', name);
    EXECUTE format('ALTER TABLE public.%I ENABLE ALWAYS TRIGGER append_only', name);
    EXECUTE format('ALTER TABLE timestamp_token ATTACH PARTITION public.%I FOR VALUES FROM (%L) TO (%L)', name,
                   substring(int4send(16384 + number) FROM 3), substring(int4send(16385 + number) FROM 3));
END
$$;

-- A freeze waits for the commits that are under way and every later one sees it: when the freeze is committed, nothing
-- more of that unit comes on record, and what is not on record does not leave the house. The number of the lock is any.
CREATE FUNCTION wait_for_commits() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(x'6672656568'::bigint);
    RETURN NULL;
END
$$;
CREATE FUNCTION refuse_frozen() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    frozen text;
BEGIN
    PERFORM pg_advisory_xact_lock_shared(x'6672656568'::bigint);
    SELECT f.tsu INTO frozen FROM tsu_freeze f WHERE f.tsu IN (SELECT n.tsu FROM new_tokens n) LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'LK004', MESSAGE = format('the unit %s is frozen', frozen), DETAIL = frozen;
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER wait_for_commits BEFORE INSERT ON tsu_freeze FOR EACH STATEMENT EXECUTE FUNCTION wait_for_commits();
CREATE TRIGGER refuse_frozen AFTER INSERT ON timestamp_token REFERENCING NEW TABLE AS new_tokens
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_frozen();

-- ---------------------------------------------------------------------------------------------------------------
-- What was recorded stays, even when the owner of the tables slips. ALWAYS: also when replaying as a replica.

CREATE FUNCTION refuse() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = 'LK003', MESSAGE = format('%s on %s is refused: %s', TG_OP, TG_TABLE_NAME,
        CASE TG_TABLE_NAME WHEN 'certificate_status' THEN 'append a row to status_change instead'
                           ELSE 'rows can only be appended' END);
END
$$;

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON status_change
    FOR EACH STATEMENT EXECUTE FUNCTION refuse();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON timestamp_token
    FOR EACH STATEMENT EXECUTE FUNCTION refuse();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON serial_epoch
    FOR EACH STATEMENT EXECUTE FUNCTION refuse();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON tsu_freeze
    FOR EACH STATEMENT EXECUTE FUNCTION refuse();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON token_retention
    FOR EACH STATEMENT EXECUTE FUNCTION refuse();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON clock_event
    FOR EACH STATEMENT EXECUTE FUNCTION refuse();
ALTER TABLE status_change ENABLE ALWAYS TRIGGER append_only;
ALTER TABLE timestamp_token ENABLE ALWAYS TRIGGER append_only;
ALTER TABLE serial_epoch ENABLE ALWAYS TRIGGER append_only;
ALTER TABLE clock_event ENABLE ALWAYS TRIGGER append_only;
ALTER TABLE tsu_freeze ENABLE ALWAYS TRIGGER append_only;
ALTER TABLE token_retention ENABLE ALWAYS TRIGGER append_only;

CREATE TRIGGER not_by_hand BEFORE INSERT OR UPDATE OR DELETE ON certificate_status
    FOR EACH STATEMENT WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION refuse();
CREATE TRIGGER not_by_hand_truncate BEFORE TRUNCATE ON certificate_status
    FOR EACH STATEMENT EXECUTE FUNCTION refuse();

-- ---------------------------------------------------------------------------------------------------------------
-- Rights follow the service.

REVOKE EXECUTE ON FUNCTION apply_status_change(), notify_authority(), refuse(), make_token_partition(timestamptz),
    wait_for_commits(), refuse_frozen() FROM PUBLIC;

GRANT USAGE ON SCHEMA public TO lakthan_responder, lakthan_tsa, lakthan_registry;

GRANT SELECT ON authority, authority_name, authority_key, authority_certificate, authority_crl, certificate_status
    TO lakthan_responder;

GRANT INSERT ON timestamp_token TO lakthan_tsa;
GRANT INSERT (at, host, event, state, offset_us, bound_us, detail) ON clock_event TO lakthan_tsa;
GRANT EXECUTE ON FUNCTION make_token_partition(timestamptz) TO lakthan_tsa;
GRANT SELECT (tsu) ON tsu_freeze TO lakthan_tsa;
GRANT INSERT (tsu), SELECT (epoch) ON serial_epoch TO lakthan_tsa;  -- epoch is read back by RETURNING only

GRANT SELECT ON ALL TABLES IN SCHEMA public TO lakthan_registry;
GRANT INSERT, UPDATE, DELETE ON authority, authority_name, authority_key, authority_certificate, authority_crl
    TO lakthan_registry;
GRANT INSERT ON status_change TO lakthan_registry;
GRANT INSERT (tsu, reason, actor) ON tsu_freeze TO lakthan_registry;

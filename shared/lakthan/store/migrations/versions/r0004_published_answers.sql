-- Answers that somebody else has signed, to be given out as they are: those of an offline CA, whose key is never online.
--
-- A responder serves the newest that is valid, and never one whose certificate has changed since it was published
-- (status_version). What the octets say is not known here: whoever publishes has verified them, and clients do again.

CREATE TABLE published_answer (
    authority_id    integer NOT NULL REFERENCES authority,
    serial_number   serial_number NOT NULL,
    cert_id_hash    text NOT NULL CONSTRAINT cert_id_hash_is_one_of CHECK (
                        cert_id_hash IN ('SHA-1', 'SHA-224', 'SHA-256', 'SHA-384', 'SHA-512')),
    produced_at     timestamptz(0) NOT NULL,
    this_update     timestamptz(0) NOT NULL,
    next_update     timestamptz(0) NOT NULL,
    cert_status     cert_status NOT NULL,
    status_version  bigint NOT NULL,  -- of certificate_status when it was published
    response        bytea NOT NULL CONSTRAINT response_is_there CHECK (octet_length(response) > 0),
    published_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (authority_id, serial_number, cert_id_hash, this_update),
    CONSTRAINT answer_ends_after_it_begins CHECK (next_update > this_update)
);

-- Publish answers of one authority, all of them or none, with a record in its audit chain; gives how many are new. Each
-- must say what is on record about its certificate now. LK011: it does not, or it is older than the one that is there.
CREATE FUNCTION publish_answers(of_authority integer, serial_numbers bytea[], cert_id_hashes text[],
                                produced timestamptz[], begins timestamptz[], ends timestamptz[],
                                cert_statuses cert_status[], responses bytea[], who text) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp SET timezone = 'UTC'
AS $$
DECLARE
    wrong  record;
    fresh  audit_record;
    newest bigint;
    count  bigint;
BEGIN
    PERFORM demand_may_act_for(of_authority);
    -- A change of one of these certificates waits until the answers about them are on record, or comes first.
    PERFORM FROM certificate_status s
      WHERE s.authority_id = of_authority AND s.serial_number = ANY (serial_numbers)
      ORDER BY s.serial_number FOR SHARE;

    SELECT a.serial_number, a.cert_status, s.cert_status AS on_record INTO wrong
      FROM unnest(serial_numbers, cert_statuses) AS a (serial_number, cert_status)
      LEFT JOIN certificate_status s ON s.authority_id = of_authority AND s.serial_number = a.serial_number
     WHERE s.cert_status IS DISTINCT FROM a.cert_status LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'LK011',
            MESSAGE = format('serial number %s of authority %s is %s on record, and an answer says that it is %s',
                             encode(wrong.serial_number, 'hex'), of_authority,
                             coalesce(wrong.on_record::text, 'unknown'), wrong.cert_status);
    END IF;

    SELECT a.serial_number, a.this_update INTO wrong
      FROM unnest(serial_numbers, cert_id_hashes, produced, begins) AS a (serial_number, cert_id_hash, produced_at,
                                                                         this_update)
      JOIN published_answer p ON p.authority_id = of_authority AND p.serial_number = a.serial_number
                             AND p.cert_id_hash = a.cert_id_hash AND p.this_update = a.this_update
     WHERE p.produced_at > a.produced_at LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'LK011',
            MESSAGE = format('serial number %s of authority %s: the answer from %s is older than the one on record',
                             encode(wrong.serial_number, 'hex'), of_authority, wrong.this_update);
    END IF;

    INSERT INTO published_answer AS p (authority_id, serial_number, cert_id_hash, produced_at, this_update, next_update,
                                       cert_status, status_version, response)
    SELECT of_authority, a.serial_number, a.cert_id_hash, a.produced_at, a.this_update, a.next_update, a.cert_status,
           s.version, a.response
      FROM unnest(serial_numbers, cert_id_hashes, produced, begins, ends, cert_statuses, responses)
           AS a (serial_number, cert_id_hash, produced_at, this_update, next_update, cert_status, response)
      JOIN certificate_status s ON s.authority_id = of_authority AND s.serial_number = a.serial_number
    ON CONFLICT (authority_id, serial_number, cert_id_hash, this_update) DO UPDATE
       SET (produced_at, next_update, cert_status, status_version, response, published_at)
         = (excluded.produced_at, excluded.next_update, excluded.cert_status, excluded.status_version,
            excluded.response, excluded.published_at)
     WHERE (p.response, p.status_version) IS DISTINCT FROM (excluded.response, excluded.status_version);
    GET DIAGNOSTICS count = ROW_COUNT;

    IF count > 0 THEN
        SELECT max(s.version) INTO newest FROM certificate_status s
          WHERE s.authority_id = of_authority AND s.serial_number = ANY (serial_numbers);
        PERFORM pg_notify('lakthan_status', json_build_object('authority_id', of_authority, 'all', true,
            'version', newest, 'changed_at', clock_timestamp())::text);
        fresh.chain := of_authority;
        fresh.event := 'ceremony';
        fresh.actor := who;
        fresh.detail := coalesce(nullif(current_setting('lakthan.detail', true), ''), '{}')::jsonb
            || jsonb_build_object('answers', count);
        PERFORM extend_chain(fresh);
    END IF;
    RETURN count;
END
$$;

REVOKE EXECUTE ON FUNCTION publish_answers(integer, bytea[], text[], timestamptz[], timestamptz[], timestamptz[],
                                           cert_status[], bytea[], text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION publish_answers(integer, bytea[], text[], timestamptz[], timestamptz[], timestamptz[],
                                          cert_status[], bytea[], text)
    TO lakthan_registry, lakthan_publisher;
GRANT SELECT ON published_answer
    TO lakthan_responder, lakthan_registry, lakthan_publisher, lakthan_registrar, lakthan_auditor;

ALTER TABLE published_answer ENABLE ROW LEVEL SECURITY;
CREATE POLICY all_rows ON published_answer FOR SELECT
    TO lakthan_responder, lakthan_registry, lakthan_registrar, lakthan_auditor USING (true);
CREATE POLICY own_rows ON published_answer FOR SELECT TO lakthan_publisher
    USING (authority_id = (SELECT acting_authority()));

-- Schema 2: limits that all processes count together.

-- Starts that were let in, until they leave the window in which they count. `scope` is empty for all, and else = and the user. `number`
-- rises by one from start to start of a scope: the start that is in the way of another is found by its number, whatever the limit is.
CREATE TABLE {schema}.starts (
    scope  text COLLATE "C" NOT NULL,
    number bigint NOT NULL,
    at     double precision NOT NULL,
    until  double precision NOT NULL,
    PRIMARY KEY (scope, number)
);
CREATE INDEX starts_until ON {schema}.starts (until);

-- Starts that were let in to wait for a slot, and whose run is not there yet.
CREATE TABLE {schema}.announced (
    run_id text COLLATE "C" PRIMARY KEY,
    at     double precision NOT NULL
);

-- What executors have taken of what there is a bounded number of. `turn` tells which of an executor's statements was the last.
CREATE TABLE {schema}.places (
    name        text COLLATE "C" NOT NULL,
    executor_id text COLLATE "C" NOT NULL REFERENCES {schema}.executors ON DELETE CASCADE,
    held        bigint NOT NULL,
    turn        bigint NOT NULL,
    PRIMARY KEY (name, executor_id)
);
CREATE INDEX places_executor ON {schema}.places (executor_id);

-- How many started runs wait for a slot, but no more than `most` of each kind: those that nobody holds, those whose time has come, and
-- those that an executor has taken hold of, which are no more than can run. In the second column those of the announced that are there.
-- One statement: a run is seen either as one that waits, or as one that is announced. IS TRUE keeps it from an index of all that are ready.
CREATE FUNCTION {schema}.queue(most bigint, announced text[]) RETURNS TABLE (waiting bigint, there text[])
LANGUAGE sql STABLE SET enable_seqscan = off SET enable_bitmapscan = off AS $$
    SELECT (
        SELECT count(*) FROM (
            SELECT 1 FROM {schema}.runs r
            WHERE r.owner IS NULL AND r.due <= 0 AND (r.status = 'ready') IS TRUE AND r.parent_id IS NULL LIMIT most) AS at_once
    ) + (
        SELECT count(*) FROM (
            SELECT 1 FROM {schema}.runs r
            WHERE r.owner IS NULL AND r.due > 0 AND r.due <= EXTRACT(epoch FROM clock_timestamp())::double precision
                AND (r.status = 'ready') IS TRUE AND r.parent_id IS NULL LIMIT most) AS delayed
    ) + (
        SELECT count(*) FROM (
            SELECT 1 FROM {schema}.runs r
            WHERE r.owner IS NOT NULL AND (r.due <= EXTRACT(epoch FROM clock_timestamp())::double precision) IS TRUE
                AND (r.status = 'ready') IS TRUE AND r.parent_id IS NULL LIMIT most) AS held
    ), (SELECT array_agg(r.run_id) FROM {schema}.runs r WHERE r.run_id = ANY(announced))
$$;

-- Decides starts, in order; see `SharedStore.let_in`. The lock is taken by a statement of its own, so that what follows sees all that
-- was decided before. It need not wait for the disk: a run that a start creates is durable later than its line here, or not at all.
CREATE FUNCTION {schema}.let_in(
    ids text[], users text[], waits boolean[], most bigint, most_of_user bigint, span double precision,
    most_waiting bigint, waiting_elsewhere bigint, there_elsewhere text[]
) RETURNS TABLE (reason text, retry_after double precision)
LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
    at_now   double precision;
    waiting  bigint := 0;
    scopes   text[];
    mosts    bigint[];
    reasons  text[] := ARRAY['rate', 'user_rate'];
    numbers  bigint[];
    last     bigint;
    before   double precision;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('{schema}.starts', 0));
    PERFORM set_config('synchronous_commit', 'off', true);
    at_now := EXTRACT(epoch FROM clock_timestamp());
    -- Also what a clock has left behind that was set back since.
    DELETE FROM {schema}.starts s WHERE s.until <= at_now OR (s.until > at_now + span AND s.at > at_now + (s.until - s.at));
    IF most_waiting IS NOT NULL AND true = ANY(waits) THEN
        DELETE FROM {schema}.announced a WHERE a.at <= at_now - 10 OR a.at > at_now + 10
            OR EXISTS (SELECT 1 FROM {schema}.runs r WHERE r.run_id = a.run_id);
        SELECT q.waiting + waiting_elsewhere + (
            SELECT count(*) FROM unnest(a.ids) AS u (run_id)
            WHERE u.run_id <> ALL (COALESCE(q.there, '{}')) AND u.run_id <> ALL (there_elsewhere))
        INTO waiting
        FROM (SELECT array_agg(n.run_id) AS ids FROM {schema}.announced n) AS a, {schema}.queue(most_waiting, a.ids) AS q;
    END IF;
    FOR i IN 1 .. cardinality(ids) LOOP
        reason := NULL;
        retry_after := 0;
        scopes := ARRAY['', '=' || users[i]];
        mosts := ARRAY[most, most_of_user];
        FOR j IN 1 .. 2 LOOP
            CONTINUE WHEN mosts[j] IS NULL OR scopes[j] IS NULL;
            SELECT s.number INTO last FROM {schema}.starts s WHERE s.scope = scopes[j] ORDER BY s.number DESC LIMIT 1;
            numbers[j] := COALESCE(last, 0) + 1;
            SELECT s.at INTO before FROM {schema}.starts s WHERE s.scope = scopes[j] AND s.number = numbers[j] - mosts[j];
            IF before > at_now - span THEN
                reason := COALESCE(reason, reasons[j]);
                retry_after := GREATEST(retry_after, before + span - at_now);
            END IF;
        END LOOP;
        IF reason IS NULL AND waits[i] AND waiting >= most_waiting THEN
            reason := 'queue';
        END IF;
        IF reason IS NULL THEN
            INSERT INTO {schema}.starts (scope, number, at, until)
            SELECT scopes[j], numbers[j], at_now, at_now + span FROM generate_series(1, 2) AS j
            WHERE mosts[j] IS NOT NULL AND scopes[j] IS NOT NULL;
            IF waits[i] AND most_waiting IS NOT NULL THEN
                INSERT INTO {schema}.announced AS n (run_id, at) VALUES (ids[i], at_now)
                ON CONFLICT (run_id) DO UPDATE SET at = EXCLUDED.at;
                waiting := waiting + 1;
            END IF;
        END IF;
        RETURN NEXT;
    END LOOP;
END
$$;

-- Makes it so that an executor holds what it `had` of each name and, as far as there are `bounds`, what it `wanted` beside; answers how
-- many came beside, and how many others hold. What comes late, after what was said later, changes nothing.
CREATE FUNCTION {schema}.hold_places(me text, said bigint, names text[], had bigint[], wanted bigint[], bounds bigint[])
RETURNS TABLE (got bigint, others bigint)
LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
    alive boolean;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('{schema}.places', 0));
    alive := EXISTS (SELECT 1 FROM {schema}.executors e WHERE e.executor_id = me AND e.expires_at > clock_timestamp());
    FOR i IN 1 .. cardinality(names) LOOP
        SELECT COALESCE(sum(p.held), 0) INTO others FROM {schema}.places p JOIN {schema}.executors e USING (executor_id)
        WHERE p.name = names[i] AND p.executor_id <> me AND e.expires_at > clock_timestamp();
        got := CASE WHEN alive THEN GREATEST(LEAST(wanted[i], bounds[i] - others - had[i]), 0) ELSE 0 END;
        IF alive AND (had[i] + got > 0
            OR EXISTS (SELECT 1 FROM {schema}.places p WHERE p.name = names[i] AND p.executor_id = me AND p.held > 0)) THEN
            INSERT INTO {schema}.places AS p (name, executor_id, held, turn) VALUES (names[i], me, had[i] + got, said)
            ON CONFLICT (name, executor_id) DO UPDATE SET held = EXCLUDED.held, turn = EXCLUDED.turn
            WHERE p.turn < EXCLUDED.turn;
        END IF;
        RETURN NEXT;
    END LOOP;
    -- A line without places is kept for a while, to know by it what comes late.
    DELETE FROM {schema}.places p WHERE p.executor_id = me AND p.held = 0 AND p.turn < said - 1000;
END
$$;

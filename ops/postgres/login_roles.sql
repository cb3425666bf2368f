-- Let the gate and people log in: `ct-stream migrate` creates their roles without a login. Run this with psql, as who made
-- the roles (mostly who ran `migrate` first) or as a superuser. It reads the passwords from the files that GATE_PASSWORD_FILE and OPS_PASSWORD_FILE name.
-- Run it again to change a password.
\set ON_ERROR_STOP on
-- By default a schema with this login's name comes first, and anybody who may make schemas may have made one.
SET search_path = pg_catalog, pg_temp;
\set gate_password `cat "$GATE_PASSWORD_FILE"`
\set ops_password `cat "$OPS_PASSWORD_FILE"`

-- Keep the passwords out of the server's log, where this login may: on a managed server it seldom may.
SELECT count(*) = 3 AS may_hide
FROM unnest(ARRAY['log_statement', 'log_min_error_statement', 'log_min_duration_statement']) AS p (name)
WHERE has_parameter_privilege(p.name, 'SET') \gset
\if :may_hide
SET log_statement = 'none';
SET log_min_error_statement = 'panic';
SET log_min_duration_statement = -1;
\else
\echo 'This login may not switch off the log of statements: if the server logs them, its log gets the two passwords.'
\endif

ALTER ROLE ct_gate LOGIN PASSWORD :'gate_password';
-- People and their dashboards must not take the connections that the workers need.
ALTER ROLE ct_ops LOGIN CONNECTION LIMIT 20 PASSWORD :'ops_password';

-- EXAMPLE, to try ct-stream in an empty database. The spine belongs to upstream: `ct-stream migrate` never creates or
-- changes it. The gate reads two of its columns, outreach_id and domain.

CREATE SCHEMA IF NOT EXISTS outreach;

CREATE TABLE IF NOT EXISTS outreach.outreach (
    outreach_id uuid PRIMARY KEY,
    domain text,
    sovereign_id uuid,
    created_at timestamptz NOT NULL DEFAULT now()
);

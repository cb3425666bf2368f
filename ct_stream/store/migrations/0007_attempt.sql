-- Which attempt to record an outcome won? Two workers may come to the very same bytes in the same millisecond, and a batch
-- whose COMMIT was not answered must know its own rows again.
ALTER TABLE outreach.ct_outcomes ADD COLUMN attempt uuid;

"""The embedded stack: a broker, a Postgres and a mail farm on loopback, for the demo, the tests and the benches."""

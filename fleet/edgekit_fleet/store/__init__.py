"""The manager's database: SQLAlchemy Core on SQLite (WAL), written so that PostgreSQL can follow.

`engine.Database` owns connections and transactions; the other modules are functions over a
`Connection`, so that callers decide what shares a transaction.
"""

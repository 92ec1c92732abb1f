"""Several PostgreSQLs as one store: which of them has what, and what becomes of calls when one of them is away."""

"""Live delivery of records to subscribers."""

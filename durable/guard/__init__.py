"""Admission: who is let in, and how many at once."""

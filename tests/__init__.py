"""Tests of durable; the folders mirror the package."""

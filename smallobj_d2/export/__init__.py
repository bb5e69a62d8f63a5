"""Datasets out: what training draws, written to disk for any other framework."""

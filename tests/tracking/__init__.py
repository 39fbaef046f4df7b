"""Tests of tracking/: the store, runs, figures, and git."""

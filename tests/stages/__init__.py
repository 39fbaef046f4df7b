"""Tests of `stages/`."""

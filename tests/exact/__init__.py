"""Tests of `exact/`."""

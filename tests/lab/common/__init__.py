"""Tests of lab/common."""

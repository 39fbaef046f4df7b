"""Tests of lab/datasets."""

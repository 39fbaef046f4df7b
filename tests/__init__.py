"""Tests, in the order of the code: exact, lab, stages, and the pipeline as a user runs it."""

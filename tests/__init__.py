"""Tests, in the order of the code: exact, lab, stages, and the pipeline as a user runs it."""

import stages  # noqa: F401 -- sets up the process before torch is loaded

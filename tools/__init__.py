"""Commands for people; nothing of the pipeline depends on them."""

import stages  # noqa: F401 -- sets up the process before torch is loaded

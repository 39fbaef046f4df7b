"""What the README's figures come from."""

import stages  # noqa: F401 -- sets up the process before torch is loaded

"""What a person does with recorded runs: compare them, replay them, report on a change.

Nothing of the pipeline depends on these.
"""

import stages  # noqa: F401 -- sets up the process before torch is loaded

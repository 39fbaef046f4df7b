"""DVC's command line, in a process that ends with the one that started it.

A worker of a sweep may be killed. Then its DVC must not go on.
"""

import sys

from dvc.cli import main

from lab.common.workspace import end_with_parent

if __name__ == "__main__":
    end_with_parent()
    sys.exit(main(sys.argv[1:]))

"""The exact implementations of PyTorch's operations, one module for each subject.

Each function has the signature of its operation below autograd. Sums and functions are
computed in float64 and rounded once to the operand's dtype. An import of this package
imports all its modules, which register their operations.
"""

import importlib
import pkgutil

for module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{module.name}")

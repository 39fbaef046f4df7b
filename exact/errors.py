"""What can stand in the way of exact results."""

__all__ = ["MachineError", "NotExactError"]


class NotExactError(RuntimeError):
    """An operation has no exact implementation; the message names it and says what to do."""


class MachineError(RuntimeError):
    """This machine, or its configuration, cannot compute exactly; the message says why."""

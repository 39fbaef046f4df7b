"""What may go wrong, made to."""

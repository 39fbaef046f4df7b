"""How results are recorded and shown. Nothing here decides a result."""

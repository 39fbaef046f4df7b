"""Arithmetic for PyTorch whose results are the same bits on every machine.

Imports torch and the standard library, and nothing of the project around it.
"""

"""Compiled code that calls compiled code by its address, and that is kept on disk."""

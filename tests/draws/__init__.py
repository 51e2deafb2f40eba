"""Tests of draws that are kept on disk."""

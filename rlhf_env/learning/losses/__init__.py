"""Objectives as functions that a file names: losses of tokens, losses of pairs, and what each declares."""

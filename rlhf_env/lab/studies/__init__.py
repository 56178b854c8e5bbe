"""Experiments of the laboratory itself."""

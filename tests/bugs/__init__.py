"""The catalogue of known bugs, a module for each part of the code; `tests/mutants.py` puts them back one at a time."""

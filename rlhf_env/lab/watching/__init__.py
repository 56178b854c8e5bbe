"""Seeing a run or a grid: the page of `rlhf-env watch`, and the report of a run."""

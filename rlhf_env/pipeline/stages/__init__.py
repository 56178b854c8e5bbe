"""The kinds of stage that a pipeline is made of."""

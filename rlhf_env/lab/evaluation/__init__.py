"""One evaluator for every agent."""

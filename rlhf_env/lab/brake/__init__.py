"""When to stop: a rule that ends a run before the learned reward is climbed past the peak of the true one."""

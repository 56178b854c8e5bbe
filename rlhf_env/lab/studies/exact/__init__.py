"""The enumerable world: optima, gradients and KL as sums."""

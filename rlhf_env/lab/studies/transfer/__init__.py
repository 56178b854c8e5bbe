"""Does a ranking of agents transfer? The same settings and tasks, at three sizes of model."""

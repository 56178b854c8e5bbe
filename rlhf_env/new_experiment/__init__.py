"""The beginning of an experiment: a folder with its file, a reward function and prompts, to be changed."""

from rlhf_env.new_experiment.folder import NewExperiment, write_experiment

__all__ = ["NewExperiment", "write_experiment"]

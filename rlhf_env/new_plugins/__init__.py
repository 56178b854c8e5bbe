"""The beginning of a plugin: a distribution with a reward, a task or an agent in it, to be changed."""

from rlhf_env.new_plugins.distribution import NewPlugin, write_plugin

__all__ = ["NewPlugin", "write_plugin"]

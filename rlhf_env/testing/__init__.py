"""The contracts of rewards, tasks and agents as checks that any plugin's own tests can run.

    from rlhf_env.testing import check_reward, make_episode

    def test_haiku_keeps_the_contract():
        check_reward(Haiku())                       # its declared range, odd texts, batch mates, ...

    def test_haiku_likes_a_haiku():
        assert Haiku()([make_episode("Write.", POEM)])[0] == 1.0

    def test_my_agent_keeps_the_contract():
        check_agent(lambda setup: MyAgent(setup, MyAgent.Config(lr=0.01)))

Each check raises ContractError (an AssertionError) that says which rule was broken, what was expected, what came, and
for which episode. Only `check_agent` needs torch, and imports it when it is called.
"""

from rlhf_env.testing.agents import check_agent
from rlhf_env.testing.episodes import make_episode
from rlhf_env.testing.rewards import check_reward
from rlhf_env.testing.tasks import check_task

__all__ = ["check_agent", "check_reward", "check_task", "make_episode"]

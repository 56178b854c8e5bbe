"""A rule that ends a run when gold is at the track's level: nothing that comes after counts."""


class Reached:
    def __init__(self, level: float):
        self.level = level

    def __call__(self, row):
        gold = row.get("eval/gold")
        return f"gold is {gold:.2f}" if isinstance(gold, float) and gold >= self.level else None

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass

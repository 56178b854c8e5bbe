"""The kinds of judgement, one file each: its fields, how it becomes pairs, import, export, and its form on the page.

| kind         | judges                       | becomes pairs                                            |
|--------------|------------------------------|----------------------------------------------------------|
| `comparison` | which of two is better       | the pair itself; none for a tie or "cannot say"          |
| `rating`     | one response, 1 to 5         | ratings of one prompt by one person, read as a ranking   |
| `ranking`    | two or more, put in order    | the C(K, 2) pairs of K responses                         |
| `criteria`   | one response, by each of     | as ratings, criterion by criterion                       |
|              | several criteria             |                                                          |
| `abstention` | "cannot say", "all bad"      | none: the answer to what another kind asked              |

`preferences_of` makes the pairs of judgements of any kind.
"""

from rlhf_env.feedback.kinds.abstention import Abstention
from rlhf_env.feedback.kinds.comparison import VERDICTS, Comparison, Verdict, verdict_of
from rlhf_env.feedback.kinds.criteria import CriteriaRating
from rlhf_env.feedback.kinds.dialects import Answered, Dialect, MessagePart
from rlhf_env.feedback.kinds.form import ChoiceInput, Form, Option, OrderInput, TextInput
from rlhf_env.feedback.kinds.kind import HIGHEST, LOWEST, JudgementKind, Lesson, ScoredResponse, lesson_of_pair
from rlhf_env.feedback.kinds.ranking import Ranking
from rlhf_env.feedback.kinds.rating import Rating, rating_preferences
from rlhf_env.feedback.kinds.registry import asked_kind_names, kind_named, kind_names, kind_of, kinds, preferences_of

__all__ = [
    "HIGHEST",
    "LOWEST",
    "VERDICTS",
    "Abstention",
    "Answered",
    "ChoiceInput",
    "Comparison",
    "CriteriaRating",
    "Dialect",
    "Form",
    "JudgementKind",
    "Lesson",
    "Option",
    "OrderInput",
    "MessagePart",
    "Ranking",
    "Rating",
    "ScoredResponse",
    "TextInput",
    "Verdict",
    "asked_kind_names",
    "kind_named",
    "kind_names",
    "kind_of",
    "kinds",
    "lesson_of_pair",
    "preferences_of",
    "rating_preferences",
    "verdict_of",
]

"""Five rows in the layout of each published set. The texts are made up: none is from a set.

`ROWS[layout]` are the rows as JSON lines have them, `SAID[layout]` what they say, as `in_words` of the tests puts it.
"""

from __future__ import annotations

import math
from typing import Any

Rows = list[dict[str, Any]]


def chat(*turns: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[place % 2], "content": said} for place, said in enumerate(turns)]


def in_parts(*turns: str) -> list[dict[str, Any]]:
    return [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in chat(*turns)]


def shp(post: str, label: int, a: int, b: int) -> dict[str, Any]:
    return {
        "post_id": post,
        "domain": "askbakers_train",
        "upvote_ratio": 0.9,
        "history": f"post {post}",
        "c_root_id_A": f"{post}a",
        "c_root_id_B": f"{post}b",
        "created_at_utc_A": 1600000000,
        "created_at_utc_B": 1600000100,
        "score_A": a,
        "score_B": b,
        "human_ref_A": f"A of {post}",
        "human_ref_B": f"B of {post}",
        "labels": label,
        "seconds_difference": 100.0,
        "score_ratio": max(a, b) / min(a, b),
    }


def comparison(post: str, choice: int, worker: str, confidence: int | None, **info: str) -> dict[str, Any]:
    return {
        "info": {"id": f"t3_{post}", "post": post, "title": f"title {post}", "subreddit": "bread", **info},
        "summaries": [
            {"text": f" first of {post}", "policy": "sup4", "note": "too short"},
            {"text": f" second of {post}", "policy": "ref", "note": None},
        ],
        "choice": choice,
        "worker": worker,
        "batch": "batch9",
        "split": "train",
        "extra": {"confidence": confidence},
    }


def axes(post: str, text: str, worker: str, overall: int, accuracy: int | None = None, **more: Any) -> dict[str, Any]:
    scores = {"overall": overall, "accuracy": accuracy, "coverage": None, "coherence": None, **more}
    return {
        "info": {"id": post, "site": "daily", "title": "t", "article": post},
        "split": "test",
        "summary": {"text": text, "policy": "ref", "note": None, "axes": scores},
        "worker": worker,
        "batch": "cnndm1",
    }


def completion(text: str, model: str, overall: float | None, **ratings: str) -> dict[str, Any]:
    return {
        "model": model,
        "principle": "helpfulness",
        "custom_system_prompt": "Be kind.",
        "response": text,
        "annotations": {aspect: {"Rating": rating, "Rationale": "so"} for aspect, rating in ratings.items()},
        "overall_score": overall,
        "fine-grained_score": 4.25,
        "critique": "fine",
    }


def ultrafeedback(question: str, *completions: dict[str, Any]) -> dict[str, Any]:
    return {
        "source": "made up",
        "instruction": question,
        "models": [one["model"] for one in completions],
        "correct_answers": ["None"],
        "incorrect_answers": ["None"],
        "completions": list(completions),
    }


def binarized(question: str, better: str, worse: str, high: float, low: float) -> dict[str, Any]:
    return {
        "prompt": question,
        "prompt_id": f"id of {question}",
        "chosen": chat(question, better),
        "rejected": chat(question, worse),
        "messages": chat(question, better),
        "score_chosen": high,
        "score_rejected": low,
    }


def argilla(question: str, better: str, worse: str, high: float, low: float) -> dict[str, Any]:
    return {
        "source": "made up",
        "prompt": question,
        "chosen": chat(question, better),
        "chosen-rating": high,
        "chosen-model": "m1",
        "rejected": chat(question, worse),
        "rejected-rating": low,
        "rejected-model": "m2",
    }


def argilla_1(question: str, better: str, worse: str, high: float, low: float) -> dict[str, Any]:
    return {
        "source": "made up",
        "instruction": f"first of {question}",
        "chosen_response": better,
        "rejected_response": worse,
        "chosen_avg_rating": high,
        "rejected_avg_rating": low,
        "chosen_model": "m1",
    }


def helpsteer(prompt: str, response: str, *scores: Any) -> dict[str, Any]:
    names = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
    return {"prompt": prompt, "response": response, **dict(zip(names, scores, strict=True))}


def preference(prompt: str, strength: int, *votes: int) -> dict[str, Any]:
    return {
        "split": "train",
        "prompt": prompt,
        "response_1": f"one of {prompt}",
        "response_2": f"two of {prompt}",
        "preference_strength": strength,
        "preference_statement": "It is better.",
        "preference_elaboration": "It says more.",
        "three_most_similar_preferences": [
            {"statement": "Yes.", "elaboration": "", "strength": vote} for vote in votes
        ],
        "all_preferences_unprocessed": [{"strength": vote, "justification": "so"} for vote in (*votes, -100)],
    }


def preference_3(prompt: str, overall: int, *votes: int | None) -> dict[str, Any]:
    return {
        "domain": "general",
        "language": "english",
        "context": chat("Hello", "Hi", prompt),
        "response1": f"one of {prompt}",
        "response2": f"two of {prompt}",
        "overall_preference": overall,
        "individual_preference": [
            {"score": vote, "reasoning": f"because {vote}", "feedback1": "f", "feedback2": "g"} for vote in votes
        ],
    }


def nectar(prompt: str, **ranks: float) -> dict[str, Any]:
    return {
        "prompt": f"\n\nHuman: {prompt}\n\nAssistant: ",
        "answers": [{"answer": text, "model": f"model {text}", "rank": rank} for text, rank in ranks.items()],
        "turns": 1,
        "num_responses": len(ranks),
        "source": ["made up"],
        "good_natured": True,
    }


def pku(prompt: str, better: int, safer: int, safe: tuple[bool, bool]) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "response_0": f"zero of {prompt}",
        "response_1": f"one of {prompt}",
        "prompt_source": "made up",
        "response_0_source": "Alpaca-7B",
        "response_1_source": "Alpaca-7B",
        "is_response_0_safe": safe[0],
        "is_response_1_safe": safe[1],
        "response_0_harm_category": {"Violence": False},
        "response_1_harm_category": {"Violence": True},
        "response_0_severity_level": 0,
        "response_1_severity_level": 1,
        "better_response_id": better,
        "safer_response_id": safer,
        "response_0_sha256": "0",
        "response_1_sha256": "1",
    }


def arena(winner: str, judge: str, a: list[Any], b: list[Any]) -> dict[str, Any]:
    return {
        "question_id": "q",
        "model_a": "ma",
        "model_b": "mb",
        "winner": winner,
        "judge": judge,
        "conversation_a": a,
        "conversation_b": b,
        "turn": len(a) // 2,
        "anony": True,
        "language": "English",
        "tstamp": 1682351591.1,
        "openai_moderation": {"flagged": False},
        "toxic_chat_tag": {"roberta-large": {"flagged": False}},
    }


def mt_bench(winner: str, judge: Any, turn: int) -> dict[str, Any]:
    return {
        "question_id": 81,
        "model_a": "ma",
        "model_b": "mb",
        "winner": winner,
        "judge": judge,
        "conversation_a": chat("Write.", "wa", "Again.", "wa2"),
        "conversation_b": chat("Write.", "wb", "Again.", "wb2"),
        "turn": turn,
    }


def kaggle(number: int, prompt: list[str], a: list[str | None], b: list[str | None], winner: str) -> dict[str, Any]:
    flags = {name: int(name == winner) for name in ("winner_model_a", "winner_model_b", "winner_tie")}
    row = {"id": number, "model_a": "ma", "model_b": "mb", "prompt": prompt, "response_a": a, "response_b": b}
    return {**row, **flags}


def webgpt(question: str, score: float) -> dict[str, Any]:
    return {
        "question": {"dataset": "made up", "id": "1", "full_text": question},
        "quotes_0": {"title": ["t"], "extract": ["e"]},
        "answer_0": f"zero of {question}",
        "tokens_0": {"prefix": [1], "completion": [2]},
        "score_0": score,
        "quotes_1": {"title": [], "extract": []},
        "answer_1": f"one of {question}",
        "tokens_1": {"prefix": [1], "completion": [3]},
        "score_1": -score,
    }


def message(name: str, parent: str | None, role: str, rank: int | None = None, **more: Any) -> dict[str, Any]:
    return {
        "message_id": name,
        "parent_id": parent,
        "user_id": f"user of {name}",
        "created_date": "2023-02-05T14:23:50+00:00",
        "text": f"text {name}",
        "role": role,
        "lang": "en",
        "review_count": 3,
        "review_result": True,
        "deleted": False,
        "rank": rank,
        "synthetic": False,
        "model_name": None,
        "labels": {"name": ["quality"], "value": [0.5], "count": [3]},
        **more,
    }


def tree(name: str, *replies: dict[str, Any]) -> dict[str, Any]:
    root = {**message(name, None, "prompter"), "replies": list(replies)}
    return {"message_tree_id": name, "tree_state": "ready_for_export", "prompt": root}


def replied(name: str, rank: int | None, *replies: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {**message(name, "above", "assistant", rank, **more), "replies": list(replies)}


def utterance(talk: str, turn: int, within: int, asked: str, text: str, score: int, went_on: bool) -> dict[str, Any]:
    return {
        "utterance_id": f"ut{talk}{turn}{within}",
        "interaction_id": f"int{talk}{turn}",
        "conversation_id": talk,
        "user_id": f"user of {talk}",
        "turn": turn,
        "within_turn_id": within,
        "included_in_balanced_subset": True,
        "conversation_type": "unguided",
        "user_prompt": asked,
        "model_response": text,
        "model_name": f"m{within}",
        "model_provider": "made up",
        "score": score,
        "if_chosen": went_on,
    }


def conversation(talk: str, *history: dict[str, Any]) -> dict[str, Any]:
    return {
        "conversation_id": talk,
        "user_id": f"user of {talk}",
        "conversation_type": "unguided",
        "opening_prompt": "q",
        "conversation_turns": 1,
        "conversation_history": list(history),
        "performance_attributes": {"values": 90},
        "choice_attributes": {"values": 80},
        "open_feedback": "",
        "generated_datetime": "2023-11-23T10:00:00",
        "timing_duration_s": 10.0,
        "timing_duration_mins": 0.2,
        "included_in_balanced_subset": True,
    }


def asked(turn: int, text: str) -> dict[str, Any]:
    return {"turn": turn, "role": "user", "content": text}


def answered(turn: int, text: str, score: int | None, went_on: bool) -> dict[str, Any]:
    by = {"model_name": f"m {text}", "model_provider": "made up"}
    return {
        "turn": turn,
        "role": "model",
        "content": text,
        **by,
        "score": score,
        "if_chosen": went_on,
        "within_turn_id": 0,
    }


def hh(asks: str, better: str, worse: str) -> dict[str, Any]:
    return {
        "chosen": f"\n\nHuman: {asks}\n\nAssistant: {better}",
        "rejected": f"\n\nHuman: {asks}\n\nAssistant: {worse}",
    }


def wsdm(number: int, winner: str) -> dict[str, Any]:
    row = {"id": str(number), "prompt": f"p{number}", "response_a": f"a{number}", "response_b": f"b{number}"}
    return {**row, "winner": winner, "model_a": "ma", "model_b": "mb", "language": "English"}


ROWS: dict[str, Rows] = {
    "hh-rlhf": [hh(f"q{n}", f"good {n}", f"bad {n}") for n in range(4)]
    + [hh("q4\n\nAssistant: yes?\n\nHuman: more", "good 4", "bad 4")],
    "summarize": [
        comparison("p0", 1, "w1", 8),
        comparison("p1", 0, "w1", 2),
        comparison("p2", 1, "w2", None),
        comparison("p0", 0, "w2", 3),
        {**comparison("", 1, "w3", 9), "info": {"id": "x", "article": "news", "site": "daily", "title": "t"}},
    ],
    "summarize-axes": [
        axes("n1", "s1", "w1", 7, 5),
        axes("n1", "s2", "w1", 4, 5),
        axes("n1", "s3", "w2", 6),
        axes("n2", "s4", "w1", 2, compatible=True),
        axes("n1", "s5", "w1", 6),
    ],
    "shp": [shp("p0", 1, 8, 2), shp("p1", 0, 5, 10), shp("p2", 1, 3, 3), shp("p3", 0, 2, 50), shp("p0", 1, 6, 2)],
    "ultrafeedback": [
        ultrafeedback(
            "q0",
            completion("a", "m1", 8.5, helpfulness="5", honesty="N/A", truthfulness="4", instruction_following="3"),
            completion("b", "m2", 7.0, helpfulness="1", honesty="2", truthfulness="N/A", instruction_following="3"),
        ),
        ultrafeedback("q1", completion("c", "m1", 6.0, helpfulness="2"), completion("d", "m2", 6.0, helpfulness="N/A")),
        ultrafeedback("q2", completion("e", "m1", 1.0), completion("e", "m2", 9.0)),
        ultrafeedback("q3", completion("f", "m1", None, honesty="5"), completion("g", "m2", 3.0, honesty="4")),
        ultrafeedback(
            "q4", completion("h", "m1", 3.0), completion("i", "m2", 2.0), completion("j", "m3", 9.5, helpfulness="5")
        ),
    ],
    "ultrafeedback-binarized": [
        binarized("q0", "a", "b", 8.5, 7.0),
        binarized("q1", "a", "b", 7.0, 7.0),
        binarized("q2", "c", "d", 9.0, 1.0),
        binarized("q3", "e", "f", 6.5, 6.0),
        binarized("q4", "g", "h", 10.0, 2.5),
    ],
    "ultrafeedback-argilla": [
        argilla("q0", "a", "b", 5.0, 3.5),
        argilla("q1", "a", "b", 4.0, 4.0),
        argilla("q2", "c", "d", 4.75, 1.0),
        argilla("q3", "e", "f", 4.5, 4.25),
        argilla("q4", "g", "h", 3.0, 2.0),
    ],
    "ultrafeedback-argilla-1": [
        argilla_1("q0", "a", "b", 5.0, 3.5),
        argilla_1("q1", "a", "b", 4.0, 4.0),
        argilla_1("q2", "c", "d", 4.75, 1.0),
        argilla_1("q3", "e", "f", 4.5, 4.25),
        argilla_1("q4", "g", "h", 3.0, 2.0),
    ],
    "helpsteer2": [
        helpsteer("q0", "a", 4, 3, 4, 1, 0),
        helpsteer("q0", "b", 0, 1, 2, 3, 4),
        helpsteer("hi\n<extra_id_1>Assistant\nyes?\n<extra_id_1>User\nq1", "c", 2, 2, 2, 2, 2),
        helpsteer("hi\n<extra_id_1>Assistant\nyes?\n<extra_id_1>User\nq1", "d", 3, 3, 3, 3, 3),
        helpsteer("q2", "e", [4, 0], [4, 1], [4, 2], [4, 3], [4, 4]),
    ],
    "helpsteer2-preference": [
        preference("p0", -3, -3, -2, -3),
        preference("p1", 1, 1, 0),
        preference("p2", 0),
        preference("p3", 2),
        preference("p4", -1),
    ],
    "helpsteer3": [
        preference_3("p0", 3, 3, 2, 3),
        preference_3("p1", -1, -1, None, 0),
        preference_3("p2", 0),
        preference_3("p3", -2),
        preference_3("p4", 1),
    ],
    "nectar": [
        nectar("q0", a=2.0, b=1.0, c=3.0, d=4.0, e=5.0, f=6.0, g=7.0),
        nectar("q1", a=1.0, b=2.0, c=2.0),
        nectar("q2", a=7.0, b=3.0),
        nectar("q3\n\nAssistant: yes?\n\nHuman: more", a=1.0, b=2.0),
        nectar("q4", a=2.0, b=1.0),
    ],
    "pku": [
        pku("q0", 1, 0, (True, False)),
        pku("q1", 0, 0, (True, True)),
        pku("q2", 1, 1, (False, False)),
        pku("q3", 0, 1, (False, True)),
        pku("q4", 1, 1, (False, True)),
    ],
    "pku-single": [
        {"prompt": f"q{n}", "response_0": f"zero {n}", "response_1": f"one {n}", "better_response_id": n % 2}
        for n in range(5)
    ],
    "chatbot-arena": [
        arena("model_a", "arena_user_1", chat("q0", "a0"), chat("q0", "b0")),
        arena("model_b", "arena_user_1", chat("q1", "a1"), chat("q1", "b1")),
        arena("tie", "arena_user_2", chat("q2", "a2"), chat("q2", "b2")),
        arena("tie (bothbad)", "arena_user_3", chat("q3", "a3"), chat("q3", "b3")),
        arena("model_a", "arena_user_4", chat("q4", "a4", "and?", "a5"), chat("q4", "b4", "and?", "b5")),
    ],
    "mt-bench": [
        mt_bench("model_a", "expert_17", 1),
        mt_bench("model_b", "author_2", 2),
        mt_bench("tie", "expert_3", 1),
        mt_bench("tie (inconsistent)", ["gpt-4", "pair-v2"], 1),
        mt_bench("model_b", "expert_9", 1),
    ],
    "battle": [
        {
            "model_a": "ma",
            "model_b": "mb",
            "winner": winner,
            "judge_hash": f"hash {n}",
            "conversation_a": in_parts(f"q{n}", f"a{n}"),
            "conversation_b": in_parts(f"q{n}", f"b{n}"),
        }
        for n, winner in enumerate(("model_a", "both_bad", "tie", "model_b", "model_a"))
    ],
    "kaggle-arena": [
        kaggle(1, ["q0"], ["a0"], ["b0"], "winner_model_a"),
        kaggle(2, ["q1"], ["a1"], ["b1"], "winner_model_b"),
        kaggle(3, ["q2"], ["a2"], ["b2"], "winner_tie"),
        kaggle(4, ["q3", "and?"], ["a3", "a4"], ["b3", None], "winner_model_a"),
        kaggle(5, ["q4"], ['a "quoted" one,\nof two lines'], ["b4"], "winner_model_a"),
    ],
    "wsdm": [wsdm(n, winner) for n, winner in enumerate(["model_a", "model_b", "model_b", "model_a", "model_a"])],
    "webgpt": [webgpt("q0", 0.75), webgpt("q1", -1.0), webgpt("q2", 0.0), webgpt("q3", 0.25), webgpt("q4", -0.5)],
    "oasst-trees": [
        tree("t0", replied("a", 1), replied("b", 0), replied("c", 2, synthetic=True, model_name="oasst-sft")),
        tree(
            "t1",
            replied("d", 0, {**message("more", "d", "prompter", 0), "replies": [replied("e", 0), replied("f", 1)]}),
            replied("g", 1, deleted=True),
            replied("h", 2),
        ),
        tree("t2", replied("i", None), replied("j", None)),
        tree("t3", replied("k", 0)),
        tree("t4", replied("l", 5), replied("m", 3, review_result=False), replied("n", 3)),
    ],
    "oasst-messages": [
        message("b", "t0", "assistant", 1),
        message("t0", None, "prompter"),
        message("a", "t0", "assistant", 0),
        message("c", "t0", "assistant", 2, synthetic=True, model_name="oasst-sft"),
        message("d", "t0", "assistant", None),
    ],
    "prism-utterances": [
        utterance("c1", 0, 0, "q0", "a", 80, True),
        utterance("c1", 0, 1, "q0", "b", 30, False),
        utterance("c1", 1, 0, "q1", "c", 60, True),
        utterance("c1", 0, 2, "q0", "d", 80, False),
        utterance("c1", 1, 1, "q1", "e", 61, False),
    ],
    "prism-conversations": [
        conversation("c1", asked(0, "q0"), answered(0, "a", 100, True), answered(0, "b", 1, False)),
        conversation(
            "c2",
            asked(0, "q0"),
            answered(0, "a", 50, False),
            answered(0, "b", 70, True),
            asked(1, "q1"),
            answered(1, "c", 9, True),
            answered(1, "d", 9, False),
        ),
        conversation("c3", asked(0, "q0"), answered(0, "a", 5, True)),
        conversation(
            "c4",
            asked(0, "q0"),
            answered(0, "a", 5, False),
            answered(0, "b", 6, False),
            asked(1, "q1"),
            answered(1, "c", 9, True),
            answered(1, "d", 8, False),
        ),
        conversation("c5", asked(0, "q0"), answered(0, "a", None, False), answered(0, "b", 6, True)),
    ],
    "trl-pairs": [{"prompt": f"q{n}", "chosen": "yes", "rejected": "no"} for n in range(5)],
    "trl-unpaired": [{"prompt": f"q{n}", "completion": f"a{n}", "label": n % 2 == 0} for n in range(5)],
}

_LOG4, _LOG2, _LOG25, _LOG3 = (f"{math.log(ratio):.4f}" for ratio in (4, 2, 25, 3))

SAID: dict[str, list[str]] = {
    "hh-rlhf": [f"overall by f: good {n} > bad {n}" for n in range(5)],
    "summarize": [
        "overall by w1:  first of p0 <  second of p0 (note: of summary 1: too short\nconfidence 8)",
        "overall by w1:  first of p1 >  second of p1 (note: of summary 1: too short\nconfidence 2)",
        "overall by w2:  first of p2 <  second of p2 (note: of summary 1: too short)",
        "overall by w2:  first of p0 >  second of p0 (note: of summary 1: too short\nconfidence 3)",
        "overall by w3:  first of  <  second of  (note: of summary 1: too short\nconfidence 9)",
    ],
    "summarize-axes": [
        "overall by w1: s1 > s2 by 3 weighing 0.3333",
        "overall by w1: s1 > s5 by 1 weighing 0.3333",
        "overall by w1: s2 < s5 by 2 weighing 0.3333",
        "accuracy by w1: s1 = s2",
    ],
    "shp": [
        f"overall by f: A of p0 > B of p0 by {_LOG4}",
        f"overall by f: A of p1 < B of p1 by {_LOG2}",
        "overall by f: A of p2 > B of p2 by 0",
        f"overall by f: A of p3 < B of p3 by {_LOG25}",
        f"overall by f: A of p0 > B of p0 by {_LOG3}",
    ],
    "ultrafeedback": [
        "gpt-4: a helpfulness 5, instruction_following 3, truthfulness 4",
        "gpt-4: b helpfulness 1, honesty 2, instruction_following 3",
        "overall by gpt-4: a > b by 1.5",
        "gpt-4: c helpfulness 2",
        "overall by gpt-4: c = d",
        "gpt-4: f honesty 5",
        "gpt-4: g honesty 4",
        "gpt-4: j helpfulness 5",
        "overall by gpt-4: h > i by 1 weighing 0.3333",
        "overall by gpt-4: h < j by 6.5 weighing 0.3333",
        "overall by gpt-4: i < j by 7.5 weighing 0.3333",
    ],
    "ultrafeedback-binarized": [
        "overall by gpt-4: a > b by 1.5",
        "overall by gpt-4: a = b",
        "overall by gpt-4: c > d by 8",
        "overall by gpt-4: e > f by 0.5",
        "overall by gpt-4: g > h by 7.5",
    ],
    "ultrafeedback-argilla": (
        _argilla_said := [
            "overall by gpt-4: a > b by 1.5",
            "overall by gpt-4: a = b",
            "overall by gpt-4: c > d by 3.75",
            "overall by gpt-4: e > f by 0.25",
            "overall by gpt-4: g > h by 1",
        ]
    ),
    "ultrafeedback-argilla-1": _argilla_said,
    "helpsteer2": [
        "f: a coherence 5, complexity 2, correctness 4, helpfulness 5, verbosity 1",
        "f: b coherence 3, complexity 4, correctness 2, helpfulness 1, verbosity 5",
        "f: c coherence 3, complexity 3, correctness 3, helpfulness 3, verbosity 3",
        "f: d coherence 4, complexity 4, correctness 4, helpfulness 4, verbosity 4",
        "f #/1: e coherence 5, complexity 5, correctness 5, helpfulness 5, verbosity 5",
        "f #/2: e coherence 3, complexity 4, correctness 2, helpfulness 1, verbosity 5",
    ],
    "helpsteer2-preference": [
        "overall by f #/1: one of p0 > two of p0 by 3 (note: Yes.)",
        "overall by f #/2: one of p0 > two of p0 by 2 (note: Yes.)",
        "overall by f #/3: one of p0 > two of p0 by 3 (note: Yes.)",
        "overall by f #/1: one of p1 < two of p1 by 1 (note: Yes.)",
        "overall by f #/2: one of p1 = two of p1 (note: Yes.)",
        "overall by f: one of p2 = two of p2 (note: It is better. It says more.)",
        "overall by f: one of p3 < two of p3 by 2 (note: It is better. It says more.)",
        "overall by f: one of p4 > two of p4 by 1 (note: It is better. It says more.)",
    ],
    "helpsteer3": [
        "overall by f #/1: one of p0 < two of p0 by 3 (note: because 3)",
        "overall by f #/2: one of p0 < two of p0 by 2 (note: because 2)",
        "overall by f #/3: one of p0 < two of p0 by 3 (note: because 3)",
        "overall by f #/1: one of p1 > two of p1 by 1 (note: because -1)",
        "overall by f #/2: one of p1 = two of p1 (note: because 0)",
        "overall by f: one of p2 = two of p2",
        "overall by f: one of p3 > two of p3 by 2",
        "overall by f: one of p4 < two of p4 by 1",
    ],
    "nectar": [
        "overall by gpt-4: a 2, b 1, c 3, d 4, e 5, f 6, g 7",
        "overall by gpt-4: a 1, b 2, c 2",
        "overall by gpt-4: a 2, b 1",
        "overall by gpt-4: a 1, b 2",
        "overall by gpt-4: a 2, b 1",
    ],
    "pku": [
        said
        for n, helpful, safe, zero, one in (
            (0, "<", ">", 5, 1),
            (1, ">", ">", 5, 5),
            (2, "<", "<", 1, 1),
            (3, ">", "<", 1, 5),
            (4, "<", "<", 1, 5),
        )
        for said in (
            f"helpfulness by f: zero of q{n} {helpful} one of q{n}",
            f"safety by f: zero of q{n} {safe} one of q{n}",
            f"is safe by f: zero of q{n} {zero}",
            f"is safe by f: one of q{n} {one}",
        )
    ],
    "pku-single": [f"overall by f: zero {n} {'><'[n % 2]} one {n}" for n in range(5)],
    "chatbot-arena": [
        "overall by arena_user_1: a0 > b0",
        "overall by arena_user_1: a1 < b1",
        "overall by arena_user_2: a2 = b2",
        "overall by arena_user_3: a3 both bad b3",
    ],
    "mt-bench": [
        "overall by expert_17: wa > wb",
        "overall by expert_3: wa = wb",
        "overall by gpt-4, pair-v2: wa cannot say wb",
        "overall by expert_9: wa < wb",
    ],
    "battle": [
        "overall by hash 0: a0 > b0",
        "overall by hash 1: a1 both bad b1",
        "overall by hash 2: a2 = b2",
        "overall by hash 3: a3 < b3",
        "overall by hash 4: a4 > b4",
    ],
    "kaggle-arena": [
        "overall by f: a0 > b0",
        "overall by f: a1 < b1",
        "overall by f: a2 = b2",
        'overall by f: a "quoted" one,\nof two lines > b4',
    ],
    "wsdm": [f"overall by f: a{n} {sign} b{n}" for n, sign in enumerate("><<>>")],
    "webgpt": [
        "overall by f: zero of q0 > one of q0 by 0.75",
        "overall by f: zero of q1 < one of q1 by 1",
        "overall by f: zero of q2 = one of q2",
        "overall by f: zero of q3 > one of q3 by 0.25",
        "overall by f: zero of q4 < one of q4 by 0.5",
    ],
    "oasst-trees": [
        "overall by f: text a 2, text b 1, text c 3",
        "overall by f: text d 1, text h 2",
        "overall by f: text e 1, text f 2",
        "overall by f: text l 2, text n 1",
    ],
    "oasst-messages": ["overall by f: text b 2, text a 1, text c 3"],
    "prism-utterances": [
        "overall by user of c1: a > b by 50 weighing 0.3333",
        "overall by user of c1: a = d weighing 0.3333",
        "overall by user of c1: b < d by 50 weighing 0.3333",
        "overall by user of c1: c < e by 1",
    ],
    "prism-conversations": [
        "overall by user of c1: a > b by 99",
        "overall by user of c2: a < b by 20",
        "overall by user of c2: c = d",
        "overall by user of c4: a < b by 1",
    ],
    "trl-pairs": ["overall by f: yes > no"] * 5,
    "trl-unpaired": [f"overall by f: a{n} {5 if n % 2 == 0 else 1}" for n in range(5)],
}

PASSED_OVER: dict[str, dict[str, int]] = {
    "summarize-axes": {
        "summaries whose worker scored no other one of the same post: scores from 1 to 7 have no place of their own": 2,
        "answers on the axis 'compatible', which are no scores from 1 to 7": 1,
    },
    "ultrafeedback": {
        "ratings of honesty that are N/A": 1,
        "ratings of truthfulness that are N/A": 1,
        "ratings of helpfulness that are N/A": 1,
        "pairs of two equal responses": 1,
        "completions without an overall_score": 1,
    },
    "helpsteer2-preference": {"overall strengths that are made of the votes, which are read one by one": 2},
    "helpsteer3": {"overall strengths that are made of the votes, which are read one by one": 2},
    "chatbot-arena": {
        "battles of several turns, whose answers come after different conversations: there is no one prompt": 1
    },
    "mt-bench": {
        "battles of several turns, whose answers come after different conversations: there is no one prompt": 1
    },
    "kaggle-arena": {
        "battles of several turns, whose answers come after different conversations: there is no one prompt": 1
    },
    "oasst-trees": {
        "ranked replies that were deleted or failed their review": 2,
        "ranked replies of the prompter, which answer nothing that was asked": 1,
        "replies without a rank beside others": 2,
        "ranked replies with no other left to compare them with": 1,
    },
    "oasst-messages": {"replies without a rank beside others": 1},
    "prism-conversations": {
        "turns with one answer, whose score has nothing to be compared with": 2,
        "turns after one of which it is not known which answer the conversation went on with": 1,
        "answers without a score": 1,
    },
}

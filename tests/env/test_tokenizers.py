"""Text to ids and back: any string goes in, and what comes out of ids is what was meant."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_env.envs.text_env import TextEnv
from rlhf_env.envs.tokenizers import AlphabetTokenizer, ByteTokenizer, FileTokenizer, load_tokenizer
from rlhf_env.errors import ConfigError, DataError

ODD_TEXTS = ["", "plain", "emoji 😀👍🏽👩‍👩‍👧", "\u202eשלום\u202c", "a\x00b", "é é ﬁ", "\n\t\r"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A byte-level BPE in the format of transformers, with an end and a pad token."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=280, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(["the cat sat on the mat, the end"] * 4, trainer)
    tokenizer.add_special_tokens([AddedToken("<end>"), AddedToken("<pad>")])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    tokens = {"eos_token": {"content": "<end>"}, "pad_token": "<pad>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokens))
    return tmp_path


@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_bytes_give_every_text_back(text: str) -> None:
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text and all(0 <= i < 256 for i in ids)


def test_bytes_by_hand() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.encode("é\x00") == [0xC3, 0xA9, 0]
    assert tokenizer.encode("\ud800") == [0xED, 0xA0, 0x80], "a lone surrogate is no reason to stop"
    assert tokenizer.decode([0xFF, 97, 258, 256, 257]) == "\ufffda"
    assert (tokenizer.vocab_size, tokenizer.pad_id, tokenizer.end_id) == (259, 256, 258)


def test_alphabet_by_hand() -> None:
    tokenizer = AlphabetTokenizer("xyz")
    assert tokenizer.encode("zyx") == [2, 1, 0]
    assert tokenizer.decode([2, 3, 4, 0]) == "zx"
    assert (tokenizer.vocab_size, tokenizer.end_id, tokenizer.pad_id) == (5, 3, 4)
    with pytest.raises(DataError, match="symbols outside the alphabet 'xyz': 'ab'"):
        tokenizer.encode("xba")
    for symbols in ("", "aa"):
        with pytest.raises(ConfigError, match="one or more different symbols"):
            AlphabetTokenizer(symbols)


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_a_file_gives_odd_texts_back(folder: Path, text: str) -> None:
    tokenizer = FileTokenizer(folder)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_file_reads_its_special_tokens(folder: Path) -> None:
    tokenizer = FileTokenizer(folder)
    assert tokenizer.decode([tokenizer.end_id, tokenizer.pad_id]) == ""
    assert {tokenizer.end_id, tokenizer.pad_id} == {tokenizer.vocab_size - 2, tokenizer.vocab_size - 1}
    assert tokenizer.encode("the\ud800cat") == tokenizer.encode("the?cat")
    assert len(tokenizer.encode("the cat")) < 7, "merges are in force"
    assert FileTokenizer(folder, end="<pad>").end_id == tokenizer.pad_id
    twin = pickle.loads(pickle.dumps(tokenizer))
    assert twin.encode("the end") == tokenizer.encode("the end")
    assert (twin.end_id, twin.pad_id, twin.vocab_size) == (tokenizer.end_id, tokenizer.pad_id, tokenizer.vocab_size)


def test_a_file_that_wraps_texts_in_special_tokens_gives_the_texts_own_ids(folder: Path) -> None:  # N14
    """Prompt and response end to end are the whole text: no second beginning, no end but the one that was written."""
    from tokenizers import Tokenizer, processors

    file, plain = folder / "tokenizer.json", FileTokenizer(folder)
    wrapping = Tokenizer.from_file(str(file))
    tokens = [("<end>", plain.end_id), ("<pad>", plain.pad_id)]
    wrapping.post_processor = processors.TemplateProcessing(single="<pad> $A <end>", special_tokens=tokens)
    assert wrapping.encode("the cat").ids == [plain.pad_id, *plain.encode("the cat"), plain.end_id]
    wrapping.save(str(file))
    tokenizer = FileTokenizer(folder)
    assert tokenizer.encode("the cat") == plain.encode("the cat")
    assert tokenizer.encode("the") + tokenizer.encode(" cat sat") == tokenizer.encode("the cat sat")


def test_ids_with_holes_fit_the_vocabulary(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel(vocab={"<end>": 0, "far": 9}, unk_token="<end>")).save(str(tmp_path / "tokenizer.json"))
    tokenizer = FileTokenizer(tmp_path, end="<end>")
    assert tokenizer.vocab_size == 10 and tokenizer.encode("far") == [9]
    assert tokenizer.pad_id == tokenizer.end_id == 0, "without a pad token the end token pads: masks come from lengths"


def test_an_environment_reads_a_tokenizer_folder(folder: Path) -> None:
    env = TextEnv(tokenizer=str(folder), max_new_tokens=4)
    observation, _ = env.reset(seed=0)
    end = FileTokenizer(folder).end_id
    assert observation in env.observation_space
    _, _, terminated, _, info = env.step(end)
    assert terminated and info["text_episode"].response == ""


def test_files_that_are_none(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(DataError, match=r"has no tokenizer\.json"):
        FileTokenizer(empty)
    (empty / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match=r"tokenizer\.json is not a tokenizer file"):
        FileTokenizer(empty)
    with pytest.raises(DataError, match=r"has no end token \('<nope>'\)"):
        FileTokenizer(folder, end="<nope>")
    for broken in ("{", "[1]", '"x"'):
        (folder / "tokenizer_config.json").write_text(broken)
        with pytest.raises(DataError, match=r"tokenizer_config\.json does not hold a JSON table"):
            FileTokenizer(folder)
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(DataError, match=r'has no end token \(None\): .* tokenizer_config\.json, "eos_token"'):
        FileTokenizer(folder)
    (folder / "vocab.json").write_text("{}")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"only the older form of one \(vocab\.json\): AutoTokenizer\.from_pretrained"):
        FileTokenizer(folder)


def test_load_tokenizer_takes_names_folders_and_tokenizers(folder: Path) -> None:
    assert isinstance(load_tokenizer("bytes"), ByteTokenizer)
    alphabet = load_tokenizer("alphabet:01")
    assert isinstance(alphabet, AlphabetTokenizer) and alphabet.symbols == "01"
    assert isinstance(load_tokenizer(folder), FileTokenizer)
    assert load_tokenizer(alphabet) is alphabet


def test_a_name_that_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"'no/such-tokenizer' is not 'bytes', 'alphabet:\.\.\.' or a folder"):
        load_tokenizer("no/such-tokenizer")


def test_bytes_of_an_array_are_its_ids_and_not_its_memory() -> None:
    assert ByteTokenizer().decode(np.array([72, 105])) == "Hi"  # type: ignore[arg-type]  # no Sequence, but often at hand

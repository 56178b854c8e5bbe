#!/usr/bin/env bash
# trl 1.16.0, transformers 5.24.0: a reward model of a tokenizer without padding token never reads the end-of-text it is given.
#
# RewardTrainer appends the end token to every text, and where the tokenizer has no padding token it takes the end token for
# that (both are documented). transformers reads the reward at the last token that is not the PADDING token. Together: at the
# token before the end. The end token that was added has no part in the reward or its gradient, so a text that ended and the
# same text cut off at the length limit have the same reward, to the last bit, in training and wherever the model is used
# (the padding token is saved with it). With a padding token of its own the two differ.
# Exits with 1 when this has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 trl==1.16.0
cat > "$folder/end.py" <<'PY'
import platform, sys
import torch, transformers, trl
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

torch.set_num_threads(1)
print("python", platform.python_version(), "- trl", trl.__version__, "- transformers", transformers.__version__)
words = {word: i for i, word in enumerate(["</s>", "<pad>", "a", "b", "c"])}
pairs = Dataset.from_dict({"prompt": ["a ", "a "], "chosen": ["b b </s>", "b </s>"], "rejected": ["c </s>", "c c </s>"]})


def rewards(**special):
    splitter = Tokenizer(models.WordLevel(words, unk_token="a"))
    splitter.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=splitter, eos_token="</s>", **special)
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(LlamaConfig(
        vocab_size=5, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_labels=1))
    arguments = trl.RewardConfig(sys.argv[1], use_cpu=True, bf16=False, max_steps=4, learning_rate=1e-2, report_to=[],
                                 disable_tqdm=True, save_strategy="no", logging_strategy="no")
    trainer = trl.RewardTrainer(model, arguments, train_dataset=pairs, processing_class=tokenizer)
    ids = trainer.train_dataset[0]["chosen_ids"]
    assert ids[-1] == tokenizer.eos_token_id
    trainer.train()
    with torch.no_grad():
        return [model.eval()(input_ids=torch.tensor([it])).logits.item() for it in (ids, ids[:-1])]


found = {"none": rewards(), "its own": rewards(pad_token="<pad>")}
for name, (ended, cut) in found.items():
    print(f"padding token: {name:8} reward of the text with its end {ended:+.4f}, cut off before it {cut:+.4f}")
same = {name: ended == cut for name, (ended, cut) in found.items()}
raise SystemExit(0 if same == {"none": True, "its own": False} else 1)
PY
PYTHONWARNINGS=ignore "$folder/venv/bin/python" "$folder/end.py" "$folder/out"

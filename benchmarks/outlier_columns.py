"""How far a copy in 8 bits is from a model, and what becomes of it where columns with large inputs are treated apart.

    python benchmarks/outlier_columns.py FOLDER        a model with a chat template

Every matrix of the model computes as a copy in 8 bits does (`rlhf_env.policies.low_precision`), simulated: inputs and
weights are rounded to whole numbers of a scale for each row, and multiplied in float32. What is printed is the mean KL
of the model to that, in nats, at the first token of answers to some questions and at all tokens of these.

    smoothed    inputs / s and weights * s, s = sqrt(largest input / largest weight) of a column
                (Xiao et al. 2022, SmoothQuant, 2211.10438, equation 4, alpha = 0.5)
    n kept      the n columns with the largest inputs are in float32
                (Dettmers et al. 2022, LLM.int8(), 2208.07339, section 3.2, with as many columns for every matrix)

Which inputs are large is found out from random tokens, as a copy could do that knows no texts. "cost" is what the
products of one step of 32 rows take, beside those of the plain copy; smoothing goes into the weights before, and costs
nothing. It is of processor time, the least of 20 turns.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from rlhf_env.policies.loading import load_with_adapter
from rlhf_env.policies.low_precision import in_8_bits

QUESTIONS = (
    "What is the capital of France?",
    "Write a poem about the sea.",
    "Add 12 and 30.",
    "Name three fruits.",
    "Why is the sky blue?",
    "Translate 'hello' into Spanish.",
    "How do I boil an egg?",
    "Give me a short story about a dog.",
)
ROWS, TURNS = 32, 20


def rounded(values: Tensor) -> Tensor:
    rows = in_8_bits(values)
    return rows.numbers * rows.scale


def in_8_bits_but(
    x: Tensor, *, weight: Tensor, bias: Tensor | None, smooth: Tensor, columns: Tensor, kept: Tensor, inputs: bool
) -> Tensor:
    """A linear layer whose `columns` have the exact weights `kept`; `inputs`: they are rounded too."""
    flat = x.flatten(0, -2) / smooth
    rest = flat.index_fill(1, columns, 0.0)
    product = torch.addmm(torch.mm(flat[:, columns], kept.t()), rounded(rest) if inputs else rest, weight.t())
    return (product if bias is None else product + bias).view(*x.shape[:-1], -1)


class Simulation:
    """A model, texts, and what it says of them."""

    def __init__(self, folder: str) -> None:
        from transformers import AutoTokenizer

        self.model = load_with_adapter(folder, torch.float32, None)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        self.texts = []
        for question in QUESTIONS:
            asked = [{"role": "user", "content": question}]
            ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
            self.texts.append(torch.tensor([ids]))
        self.linears = {name: it for name, it in self.model.named_modules() if isinstance(it, nn.Linear)}
        self.expected = self.said()
        self.largest = self.largest_inputs()

    def said(self) -> list[Tensor]:
        """Log-probabilities [L, V] after every token of each text."""
        return [self.model(input_ids=ids).logits[0].log_softmax(-1) for ids in self.texts]

    def largest_inputs(self) -> dict[str, Tensor]:
        """Of every column of every matrix, over random tokens."""
        found: dict[str, Tensor] = {}

        def note(name: str, _module: object, inputs: tuple[Tensor]) -> None:
            found[name] = inputs[0].flatten(0, -2).abs().amax(0)

        hooks = [it.register_forward_pre_hook(partial(note, name)) for name, it in self.linears.items()]
        vocabulary = self.model.get_input_embeddings().num_embeddings
        self.model(input_ids=torch.randint(0, vocabulary, (4, 16), generator=torch.Generator().manual_seed(0)))
        for hook in hooks:
            hook.remove()
        return found

    def apart(self, *, kept: int = 0, smooth: bool = False, weights: bool = True, inputs: bool = True) -> str:
        """The mean KL at the first tokens and at all, as cells of a line."""
        for name, linear in self.linears.items():
            weight, largest = linear.weight, self.largest[name].clamp(min=1e-5)
            scales = (largest / weight.abs().amax(0).clamp(min=1e-5)).sqrt() if smooth else torch.ones_like(largest)
            weight = weight * scales
            columns = (largest / scales).topk(kept).indices
            exact, weight = weight[:, columns], weight.index_fill(1, columns, 0.0)
            linear.forward = partial(  # type: ignore[method-assign]
                in_8_bits_but,
                weight=rounded(weight) if weights else weight,
                bias=linear.bias,
                smooth=scales,
                columns=columns,
                kept=exact,
                inputs=inputs,
            )
        said = self.said()
        for linear in self.linears.values():
            del linear.forward
        differences = [(p.exp() * (p - q)).sum(-1) for p, q in zip(self.expected, said, strict=True)]
        first = torch.stack([it[-1] for it in differences]).mean()
        return f"{float(first):12.4f} {float(torch.cat(differences).mean()):12.4f}"

    def cost(self, kept: int) -> float:
        """What the products of a step take with `kept` columns in bfloat16 or float32, the quicker, beside 8 bits."""
        shapes = {tuple(it.weight.shape): 0 for it in self.linears.values()}
        for it in self.linears.values():
            shapes[tuple(it.weight.shape)] += 1
        plain = more = 0.0
        for (outputs, inputs), count in shapes.items():
            numbers = torch.ones(ROWS, inputs, dtype=torch.int8)
            weight = torch.ones(outputs, inputs, dtype=torch.int8).t()
            plain += count * least(lambda a=numbers, b=weight: torch._int_mm(a, b))
            x, columns = torch.ones(ROWS, inputs), torch.arange(kept)
            total = torch.ones(ROWS, outputs)
            ways = [torch.ones(kept, outputs, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)]
            more += count * min(
                least(lambda x=x, c=columns, t=total, w=w: t.add_(x[:, c].to(w.dtype) @ w)) for w in ways
            )
        return 1.0 + more / plain


def least(work: Callable[[], object]) -> float:
    """Seconds of processor time."""
    took = []
    for _ in range(TURNS):
        start = time.process_time()
        work()
        took.append(time.process_time() - start)
    return min(took)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="of a model with a chat template")
    folder = parser.parse_args().folder
    torch.set_num_threads(1)
    simulation = Simulation(folder)
    print(f"{folder}, nats{'':24} first token   all tokens         cost")
    for name, changes in {
        "plain": {},
        "weights alone in 8 bits": {"inputs": False},
        "inputs alone in 8 bits": {"weights": False},
        "smoothed": {"smooth": True},
        "4 kept": {"kept": 4},
        "16 kept": {"kept": 16},
        "32 kept": {"kept": 32},
        "smoothed, 4 kept": {"smooth": True, "kept": 4},
        "smoothed, 16 kept": {"smooth": True, "kept": 16},
    }.items():
        cost = f"{simulation.cost(int(changes.get('kept', 0))):12.2f}" if changes.get("kept") else ""
        print(f"{name:{len(folder) + 30}} {simulation.apart(**changes)} {cost}", flush=True)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()

"""`rlhf-env export` and `shrink`: a run as a model for other programs, and a model with fewer layers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from rlhf_env.cli.shared import LEARNING, WhichCheckpoint, app, examples


@app.command(
    "export",
    rich_help_panel=LEARNING,
    epilog=examples("rlhf-env export runs/ppo out", "rlhf-env export runs/lora adapter --adapter"),
)
def export_model(
    run: Annotated[Path, typer.Argument(help="A run folder of rlhf-env train, finished or not.")],
    out: Annotated[Path, typer.Argument(help="The folder to write; an earlier export there is replaced.")],
    checkpoint: WhichCheckpoint = "best",
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16", "float64"] | None,
        typer.Option(help="The type of the weights (default: that of the checkpoint, to the bit)."),
    ] = None,
    adapter: Annotated[
        bool, typer.Option("--adapter", help="Of a run with LoRA, the adapters alone, as peft loads them.")
    ] = False,
    push: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Upload it to the Hugging Face hub, too: owner/model, made if need be."),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the hub's repository a private one.")] = False,
) -> None:
    """Write a run's model as a folder that transformers, TRL and vLLM load, with a model card.

    It contains weights (safetensors), tokenizer, chat template, a generation config with every end token, and
    README.md, which says how the model was trained and what was measured. Adapters (LoRA) are merged into the weights,
    or written alone with `--adapter`.
    """
    from rlhf_env.errors import ConfigError
    from rlhf_env.lab.evaluation.exporting import export_run
    from rlhf_env.shown_text import near

    if private and push is None:
        raise ConfigError("--private is about the repository that --push makes")
    trained = export_run(run, out, checkpoint=checkpoint, dtype=dtype, adapter=adapter)
    what = "an adapter" if adapter else "a model"
    typer.echo(f"{near(trained.checkpoint)}, after {trained.update:,} updates, is {what} in {out}")
    if push is not None:
        from rlhf_env.lab.evaluation.hub import push as upload

        typer.echo(upload(out, push, private=private))


@app.command("shrink", rich_help_panel=LEARNING, epilog=examples("rlhf-env shrink runs/ppo student --layers 2"))
def shrink_model(
    model: Annotated[str, typer.Argument(help="A folder, the folder of a run, a shipped model or a hub name.")],
    out: Annotated[Path, typer.Argument(help="The folder to write, which is new or empty.")],
    layers: Annotated[
        int, typer.Option(help="Layers of the smaller model: so many of the model's, evenly spread.", min=1)
    ],
    hidden_size: Annotated[
        int | None,
        typer.Option(help="The width of the smaller model; its weights are then random, and none are kept.", min=1),
    ] = None,
    seed: Annotated[int, typer.Option(help="What random weights are drawn from.", min=0)] = 0,
) -> None:
    """Write a smaller model of the same family with the same tokenizer: a student for distillation.

    It keeps embeddings, head and some of the layers, the first and the last among them. A narrower one
    (`--hidden-size`) keeps the shape of heads and the proportions of layers, and starts from random weights.
    """
    from rlhf_env.learning.smaller_models import write_smaller

    made = write_smaller(model, out, layers=layers, hidden_size=hidden_size, seed=seed)
    kept = (
        "random weights"
        if made.kept is None
        else f"layers {', '.join(str(layer + 1) for layer in made.kept)} of {made.layers_before}"
    )
    typer.echo(f"{out}: {made.parameters:,} of {made.of:,} parameters, {kept}")

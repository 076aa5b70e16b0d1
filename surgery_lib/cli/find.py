"""`find` searches an edit and writes it with its card; `evaluate` measures one on other prompts."""

from pathlib import Path
from typing import Annotated, Any

import typer

from surgery_lib.cli.options import (
    Chat,
    Device,
    Dtype,
    Model,
    Patch,
    Texts,
    load,
    read_patch,
    read_prompts,
    read_texts,
)
from surgery_lib.cli.reproduce import CONTRAST, PATCH, record
from surgery_lib.errors import UserError

OwnTexts = Annotated[Path | None, typer.Option(help="a text a line, .csv or .jsonl")]
Prompts = Annotated[Path | None, typer.Option(help="what provokes it, one a line")]
NewTokens = Annotated[int, typer.Option(help="of each continuation that is measured")]


def find(
    model: Model,
    positive: OwnTexts = None,
    negative: OwnTexts = None,
    prompts: Prompts = None,
    contrast: Annotated[
        tuple[str, str] | None,
        typer.Option(help="in place of texts: an instruction that shows it, one that does not"),
    ] = None,
    chat: Chat = False,
    profile: Annotated[str | None, typer.Option(help="says what to search")] = None,
    out: Annotated[Path, typer.Option(help="folder for patch, card and reproduce.json")] = Path(
        "my-surgery"
    ),
    dtype: Dtype = "float32",
    device: Device = "cpu",
    perplexity_rise: Annotated[float | None, typer.Option(help="budget, relative")] = None,
    context_kl: Annotated[float | None, typer.Option(help="budget, nats in context")] = None,
    max_new_tokens: NewTokens = 20,
    seed: int = 0,
) -> None:
    """Search an edit within a budget of damage, print before and after, write the patch.

    Give texts that show the behaviour and texts that do not; or, for a chat model, two instructions
    and prompts, and the model writes the texts itself.
    """
    from surgery_lib import files

    if contrast is None and (positive is None or negative is None):
        raise UserError("give --positive and --negative, or --contrast and --prompts")
    if contrast is not None and (positive or negative or prompts is None):
        raise UserError("a contrast takes --prompts in place of --positive and --negative")
    if (out / PATCH).exists():
        raise UserError(f"{out / PATCH} exists already; choose another --out, or remove it")
    given = [path for path in (positive, negative, prompts) if path is not None]
    for path in given:  # before the model is loaded
        read_texts(path)
    from surgery_lib.profile import load_profile
    from surgery_lib.selection.find import find_surgery, settings_for
    from surgery_lib.study.locks import alone

    # Of two into one folder, the second is told before it searches.
    with alone(out / ".lock", f"a search into {out}"):
        settings = load_profile(profile) if profile else None
        loaded, tokenizer = load(model, dtype, device)
        settings = settings_for(loaded, settings, None)
        limits = {"perplexity_rise": perplexity_rise, "context_kl": context_kl}
        changed = {name: value for name, value in limits.items() if value is not None}
        settings = settings.model_copy(
            update={"budget": settings.budget.model_copy(update=changed)}
        )
        if contrast is not None:
            shown, absent = [], []
            # The contrast puts them into the template.
            asked = read_prompts(prompts, False, tokenizer)
        else:
            assert positive is not None and negative is not None
            shown, absent = read_texts(positive), read_texts(negative)
            asked = read_prompts(prompts, chat, tokenizer)
        found = find_surgery(
            loaded,
            tokenizer,
            shown,
            absent,
            prompts=asked or None,
            contrast=contrast,
            profile=settings,
            max_new_tokens=max_new_tokens,
            seed=seed,
            say=lambda line: typer.echo(line, err=True),
        )
        typer.echo(f"\n{found.table()}")  # below what the bars left
        files.write_json(out / "found.json", found.as_dict())
        if found.contrast is not None:
            labelled = ((1, found.contrast.positive), (0, found.contrast.negative))
            rows = [{"text": text, "label": label} for label, texts in labelled for text in texts]
            files.write_jsonl(out / CONTRAST, rows)
        if found.surgery is None:
            raise UserError(
                "no edit stays within the budget, so no patch was written; the front that was "
                f"found is above and in {out / 'found.json'}"
            )
        found.surgery.save(out)
        _card(out, model, loaded, found)
        inputs = {"positive": positive, "negative": negative, "prompts": prompts}
        record(
            out,
            model=model,
            loaded=loaded,
            dtype=dtype,
            device=device,
            seed=seed,
            chat=chat,
            contrast=contrast,
            settings=settings,
            surgery=found.surgery,
            inputs=inputs,
        )
        typer.echo(
            f"\n{found.seconds / 60:.1f} min; surgery.safetensors, README.md, found.json and "
            f"reproduce.json are in {out}"
        )


def evaluate(
    model: Model,
    patch: Patch,
    positive: Texts,
    negative: Texts,
    prompts: Texts,
    chat: Chat = False,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    max_new_tokens: NewTokens = 20,
    out: Annotated[Path | None, typer.Option(help="file for the numbers, .json")] = None,
) -> None:
    """Measure a patch on all the prompts given: behaviour and damage, before and after.

    The texts teach the scorer, and the negative ones are what damage is measured on; give prompts
    that the search did not have.
    """
    from surgery_lib import files

    surgery = read_patch(patch)
    shown, absent = read_texts(positive), read_texts(negative)
    read_texts(prompts)
    from surgery_lib.selection.measure import measure_surgery

    loaded, tokenizer = load(model, dtype, device)
    asked = read_prompts(prompts, chat, tokenizer) or []
    measured = measure_surgery(
        loaded, tokenizer, surgery, shown, absent, asked, max_new_tokens=max_new_tokens
    )
    typer.echo(measured.table())
    if out is not None:
        files.write_json(out, measured.as_dict())


def _card(out: Path, model: str, loaded: Any, found: Any) -> None:
    from surgery_lib.checkpoint import card
    from surgery_lib.models import layout

    card.write_patch(
        out,
        found.surgery,
        parent=model,
        behaviour="the behaviour",
        data=found.data,
        total=layout.total_rows(loaded, found.surgery.matrix),
        effects=found.table(),
    )

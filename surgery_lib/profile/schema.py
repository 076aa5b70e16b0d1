"""A study's settings: one YAML file in `profiles/`; every field is documented here, once."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from surgery_lib.profile.section import Section

# What becomes part of a path and of a command line: profiles, behaviours, grids.
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what numpy takes
Share = Annotated[float, Field(gt=0, le=1)]
Benchmark = Literal["gsm8k", "bbh", "mmlu", "tydiqa", "wikitext"]  # the paper's


class Model(Section):
    """Which model, and how it is loaded."""

    id: str = Field(description="hub id, folder, GGUF file, package:… or embedded:…")
    revision: str | None = Field(None, description="commit of the hub's repository; pins the id")
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = Field(
        "auto",
        description="number format of the weights; auto is the file's own, or for a large model on "
        "a processor, bfloat16 where that is fast and float32 elsewhere",
    )
    device: str = Field("auto", description="cpu, cuda, cuda:1, mps, or auto for the best there is")
    trust_remote_code: bool = Field(
        False, description="run Python that comes with the model; only for authors you trust"
    )
    quantization: Literal["4bit", "8bit"] | None = Field(
        None, description="load through bitsandbytes, for measuring only"
    )


class Source(Section):
    """Where labelled texts, prompts or plain texts come from; one row gives one item.

    In this order: `where` picks rows, `join` joins them, they are shuffled, `part` and `limit` cut.
    """

    kind: Literal["patient", "hub", "file"] = Field(
        description="the patient's generator, a hub dataset (or its mirror), or a file of one's own"
    )
    id: str = Field("", description="dataset id, or path of a .jsonl, .csv or .txt file")
    revision: str | None = Field(None, description="commit of the dataset's repository")
    config: str | None = Field(None, description="the dataset's configuration or folder")
    split: str = Field("", description="the dataset's split; empty: named as the study's split")
    text: str = Field("text", description="column of the text; prompt.text reaches into an object")
    label: str | None = Field(None, description="column of the label; none for unlabelled texts")
    positive: tuple[str | int | float | bool, ...] = Field(
        (1,), description="values of the label that show the behaviour"
    )
    group: str = Field("", description="name of the group that every row belongs to")
    group_column: str | None = Field(None, description="column that names each row's own group")
    where: dict[str, Any] = Field(
        {}, description="column → value, or list of values, that a row must have to be used"
    )
    join: int = Field(
        0, description="join rows until a text has at least this many characters; 0 = as they are"
    )
    part: tuple[float, float] = Field(
        (0.0, 1.0),
        description="share of the shuffled rows, from and to: [0, 0.5] and [0.5, 1] are disjoint",
    )
    limit: int = Field(0, ge=0, description="most rows to take after shuffling; 0 = all")
    seed: int = Field(0, description="of the shuffle; the same for parts of one dataset")


class Splits(Section):
    """Sources of each split. One source, or a list, in place of the splits stands for all three."""

    train: tuple[Source, ...] = Field((), description="what the probe is fitted on")
    validation: tuple[Source, ...] = Field((), description="what everything is chosen on")
    test: tuple[Source, ...] = Field((), description="for the reported numbers alone")

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        if isinstance(value, list) or (isinstance(value, dict) and "kind" in value):
            value = {"train": value, "validation": value, "test": value}
        if isinstance(value, dict):
            return {k: [v] if isinstance(v, dict) else v for k, v in value.items()}
        return value


class Scorer(Section):
    """Text → [0, 1], one meaning that the behaviour shows."""

    kind: Literal[
        "patient", "classifier", "words", "minilm", "refusal", "perspective", "judge", "texts"
    ] = Field(description="which scorer")
    name: str = Field("", description="the column's name in tables; empty: the kind")
    id: str = Field("", description="model of the classifier or judge; data set or file of texts")
    revision: str | None = Field(None, description="commit of that model")
    label: int | str = Field(1, description="the classifier's class that shows the behaviour")
    threshold: float = Field(0.5, ge=0, le=1, description="score from which the behaviour counts")
    invert: bool = Field(False, description="use one minus the score (refusing → giving in)")
    options: dict[str, Any] = Field({}, description="what else this kind of scorer takes")


class Behaviour(Section):
    """One behaviour: its data, how it is provoked, how it is scored."""

    goal: Literal["remove"] = Field(
        "remove", description="lose the behaviour; to gain one, label texts without it 1"
    )
    examples: Splits = Field(description="texts labelled with the behaviour, for the probe")
    prompts: Splits = Field(description="prompts whose continuation is scored")
    benign: Splits = Field(Splits(), description="harmless prompts, for first-token KL")
    clean: Splits = Field(description="harmless prose, for perplexity")
    trigger_groups: tuple[str, ...] = Field(
        ("challenging",), description="groups of prompts that the choice and the headline are over"
    )
    guide: Scorer = Field(description="the scorer that selection sees")
    report: tuple[Scorer, ...] = Field(description="the scorers in the tables")
    max_new_tokens: int = Field(20, ge=1, description="length of a continuation")
    chat: bool = Field(False, description="put prompts through the chat template")


Rule = Literal["cosine", "cosine_gain", "effect", "covariance", "answers", "within"]
Estimator = Literal["softmax", "logistic", "mean_difference", "lda"]


class Probe(Section):
    """How directions are fitted; layer and estimator are chosen on validation data."""

    estimators: tuple[Estimator, ...] = Field(("lda",), min_length=1, description="to compare")
    layers: Literal["all"] | tuple[int, ...] = Field(
        "all", description="indices of hidden_states, negative from the end; the paper: [-1]"
    )
    pooling: Literal["mean", "last", "after_first"] = Field(
        "mean", description="over a text's tokens; after_first leaves the first token out"
    )
    max_tokens: int = Field(100, ge=1, description="tokens of a text that are read (paper: 100)")
    direction: Literal["difference", "paper"] = Field(
        "difference", description="W1 − W0 normalised, or row 1 as the authors train it"
    )
    limit: int = Field(0, ge=0, description="most texts of a split to fit or test on; 0 = all")


class Region(Section):
    """Which rows are edited."""

    matrix: Literal["gate", "up", "q", "k", "v", "o", "down"] = Field(
        "gate", description="matrix whose rows are ranked; the paper: gate"
    )
    rules: tuple[Rule, ...] = Field(
        ("cosine",), min_length=1, description="scores to rank by; the paper: cosine"
    )
    layers: Literal["all"] | tuple[int, ...] = Field(
        "all", description="of the fitted probes, those at these layers are tried in the search"
    )
    fractions: tuple[Share, ...] = Field(
        (0.05,), min_length=1, description="K as shares of all rows, to sweep; the paper: 0.0465"
    )
    effect_texts: int = Field(500, ge=1, description="texts of a label that a rule reads, at most")

    @model_validator(mode="after")
    def _scored(self) -> "Region":
        if not set(self.rules) <= {"cosine", "cosine_gain"} and self.matrix != "gate":
            raise ValueError(
                "effect and covariance-aware rules score gate rows alone; use a cosine rule, or "
                "matrix: gate"
            )
        return self


class Surgery(Section):
    """How far the rows are moved."""

    strengths: tuple[float, ...] = Field(
        (0.5, 1.0, 1.5, 2.0, 3.0), min_length=1, description="α, to sweep"
    )
    by_damage: bool = Field(
        False, description="strengths are shares of the one that spends the budget on validation"
    )
    unit: Literal["row_norm", "absolute"] = Field(
        "row_norm", description="α in mean row norms, or the paper's α times W1"
    )


class Budget(Section):
    """The damage that a chosen point may do."""

    perplexity_rise: float = Field(0.10, ge=0, description="relative, on clean text")
    context_kl: float | None = Field(
        None, gt=0, description="nats a token inside contexts that trigger the behaviour"
    )
    margin: float = Field(
        0.8, gt=0, le=1, description="share of the budget that may be used on validation"
    )


class Capability(Section):
    """Tasks of lm-eval, before and after, and the paper's benchmarks (04: without wikitext)."""

    tasks: tuple[str, ...] = Field((), description="names of lm-eval tasks")
    include_path: str | None = Field(
        None, description="folder of task files of one's own, from the repository's root"
    )
    limit: int = Field(0, ge=0, description="most items of a task or benchmark; 0 = all")
    benchmarks: tuple[Benchmark, ...] = Field((), description="the paper's; in 07 none = all")


class EvaluationSettings(Section):
    """How much is measured, and by what."""

    limit: int = Field(0, ge=0, description="most items of anything; 0 = all. A quick look: 20")
    search_prompts: int = Field(100, ge=1, description="validation prompts for the first sieve")
    validation_prompts: int = Field(300, ge=1, description="prompts that the choice is made on")
    ablation_prompts: int = Field(150, ge=1, description="validation prompts of each ablation")
    protocol_prompts: int = Field(
        0, ge=0, description="most prompts of a protocol of the paper's; 0 = all, as it reports"
    )
    test_prompts: int = Field(0, ge=0, description="prompts of each group reported on; 0 = all")
    clean_texts: int = Field(0, ge=0, description="clean texts of a split; 0 = all")
    window: int = Field(256, ge=2, description="tokens in a perplexity window")
    bos: bool | None = Field(
        None, description="start perplexity windows with the start token; null = as the tokenizer"
    )
    tokens_per_batch: int = Field(8192, ge=1, description="smaller needs less memory")
    capability: Capability = Field(Capability(), description="tasks run before and after")
    engine: Literal["transformers", "vllm"] = Field(
        "transformers", description="what writes protocols' text and answers tasks"
    )
    engine_options: dict[str, Any] = Field(
        {}, description="vLLM's own, such as gpu_memory_utilization: 0.5 beside a live model"
    )


class Job(Section):
    """What one study asks of a cluster, all strengths inside; one machine alone ignores it."""

    cores: int = Field(2, ge=1, description="processor cores")
    gpus: int = Field(0, ge=0, description="graphics cards")
    memory_gb: float = Field(8.0, gt=0, description="main memory")
    hours: float = Field(12.0, gt=0, description="after this the cluster may end the job")


Control = Literal["random_direction", "random_rows", "aligned_rows", "inverted_direction"]


class Controls(Section):
    """Edits that should not work, at the chosen strength and K."""

    kinds: tuple[Control, ...] = Field(
        ("random_direction", "random_rows", "aligned_rows", "inverted_direction"),
        description="which controls",
    )
    random_seeds: int = Field(5, ge=1, description="draws of each random control")


class Profile(Section):
    """Everything that a study depends on, but its behaviour and seed."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$", description="folder of the results; the file's name"
    )
    about: str = Field("", description="one sentence for the reader")
    model: Model = Field(description="the model")
    behaviours: dict[str, Behaviour] = Field(min_length=1, description="by name")
    order: tuple[str, ...] = Field(
        (),
        description="behaviours operated on one after the other, each along a probe fitted on the "
        "model that the one before left (the paper, section 4.5)",
    )
    probe: Probe = Field(Probe(), description="the direction")
    region: Region = Field(Region(), description="the rows")
    surgery: Surgery = Field(Surgery(), description="the edit")
    budget: Budget = Field(Budget(), description="the damage allowed")
    evaluation: EvaluationSettings = Field(EvaluationSettings(), description="the measurement")
    controls: Controls = Field(Controls(), description="what should not work")
    job: Job = Field(Job(), description="what a cluster has to give")
    seeds: tuple[Seed, ...] = Field((0,), min_length=1, description="studies to run")

    @field_validator("behaviours")
    @classmethod
    def _named(cls, behaviours: dict[str, Behaviour]) -> dict[str, Behaviour]:
        for name in behaviours:
            if not re.fullmatch(NAME, name):
                raise ValueError(
                    f"{name[:64]!r} is no name: letters, digits, dots, dashes, 64 at the most"
                )
        return behaviours

    @field_validator("order")
    @classmethod
    def _known(cls, order: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        unknown = [name for name in order if name not in info.data.get("behaviours", order)]
        if unknown or len(set(order)) < len(order):
            raise ValueError("names behaviours of this profile, each once")
        return order

    @field_validator("seeds")
    @classmethod
    def _unique(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("one stands twice; name each once")
        return seeds

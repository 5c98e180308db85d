"""A training recipe: one YAML file, or the same dataclasses from Python."""

from dataclasses import dataclass, field

from promptembedder.errors import ConfigError, shown
from promptembedder.method import BaselineConfig, ModelConfig
from promptembedder.backbone import TextStatesConfig
from promptembedder.training.monitor import HealthConfig

ANY_COLUMNS = ("anchor", "positive")
TRACKERS = ("tensorboard", "trackio", "wandb")

__all__ = [
    "ANY_COLUMNS",
    "DataConfig",
    "EvaluationConfig",
    "HealthConfig",
    "LossConfig",
    "OptimConfig",
    "Recipe",
    "RunConfig",
]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What to train on: exactly one of `mixture`, `pairs` and `hub`.

    Attributes:
        mixture: JSON file that lists tasks with their files and instructions.
        tasks: Names of the mixture's tasks to use; empty uses all.
        pairs: File of rows with `anchor`, `positive` and sometimes `negative`, or with other columns that hold pairs.
        hub: Data set of the hub, or a local folder in its shape.
        hub_subset: Configuration name of the hub's data set.
        hub_split: Split of the hub's data set.
        columns: Columns that serve as anchor, positive and, if there is a third, negative. For `pairs` the default
            finds them: these, or other usual names, or the only two columns.
        instructions: Wordings for `pairs` and `hub`; one is drawn for each batch.
        document_instructions: Wordings for the documents; empty gives them the default instruction.
        in_batch_negatives: False for label data of `pairs` and `hub`, where another row may be as right.
        require_negative: Leave out the rows that have no negative of their own.
        limit: Rows of each task, drawn with the seed; None takes all.
        held_out: Rows of each task kept from training for the evaluation loss.
        held_out_wordings: Last wordings of each task of a mixture kept from training.
    """

    mixture: str | None = None
    tasks: tuple[str, ...] = ()
    pairs: str | None = None
    hub: str | None = None
    hub_subset: str | None = None
    hub_split: str = "train"
    columns: tuple[str, ...] = ANY_COLUMNS
    instructions: tuple[str, ...] = ()
    document_instructions: tuple[str, ...] = ()
    in_batch_negatives: bool = True
    require_negative: bool = False
    limit: int | None = None
    held_out: int = 0
    held_out_wordings: int = 0

    def __post_init__(self) -> None:
        given = [name for name in ("mixture", "pairs", "hub") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ConfigError(f"data names several sources: {', '.join(given)}. Give exactly one.")
        if len(self.columns) not in (2, 3):
            raise ConfigError(
                f"data.columns must name anchor, positive and maybe negative, got {shown(list(self.columns))}."
            )
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"data.limit must be at least 1, got {self.limit}. Leave it out to take all rows.")
        for name in ("held_out", "held_out_wordings"):
            if getattr(self, name) < 0:
                raise ConfigError(f"data.{name} must not be negative, got {getattr(self, name)}.")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """InfoNCE (sentence-transformers' MultipleNegativesRankingLoss).

    Attributes:
        temperature: Divides the cosines; unitless, > 0. Not the temperature of the relaxation.
        symmetric: Ask also for the anchor among the batch's anchors, given its positive.
        stepwise: Mean over the embeddings after one soft token, two, and so on; see `StepwiseLoss`.
    """

    temperature: float = 0.05
    symmetric: bool = False
    stepwise: bool = False

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ConfigError(f"loss.temperature must be > 0, got {self.temperature}. Try 0.05.")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with a warm-up, then a linear decay or none.

    Attributes:
        batch_size: Rows of a step, of all processes together.
        learning_rate: Of the prompter.
        alignment_learning_rate: Of the alignment, deeper alignments and head.
        anchor_learning_rate: Of the prompter's anchor, which is trained like a static soft prompt, and of static ones.
        schedule: `linear` or `constant` after the warm-up.
        max_grad_norm: Gradients are clipped to this norm.
    """

    steps: int = 100
    batch_size: int = 24
    learning_rate: float = 3e-4
    alignment_learning_rate: float = 2e-3
    anchor_learning_rate: float = 1e-2
    weight_decay: float = 0.01
    warmup_steps: int = 10
    schedule: str = "linear"
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "batch_size",
            "learning_rate",
            "alignment_learning_rate",
            "anchor_learning_rate",
            "max_grad_norm",
        ):
            if not getattr(self, name) > 0:
                raise ConfigError(f"optim.{name} must be > 0, got {getattr(self, name)}.")
        if self.batch_size < 2:
            raise ConfigError("optim.batch_size must be at least 2: the other rows are the negatives.")
        if self.schedule not in ("linear", "constant"):
            raise ConfigError(f"unknown optim.schedule {shown(self.schedule)}. Use linear or constant.")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """A similarity test while training.

    Attributes:
        sts: File of rows with `sentence1`, `sentence2` and `score`; None evaluates nothing but the loss.
        split: Only rows whose `split` says this; None takes all.
        instruction: Both sentences are read under it.
        limit: First rows of the file; None takes all.
        every: Steps between evaluations; 0 evaluates at the end only.
    """

    sts: str | None = None
    split: str | None = None
    instruction: str = "Retrieve semantically similar text"
    limit: int | None = None
    every: int = 0


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where and how the run goes.

    Attributes:
        output: Folder of the trained model, its checkpoints and `metrics.jsonl`.
        save_every: Steps between checkpoints.
        keep_checkpoints: Older ones are deleted.
        log_every: Steps between lines of `metrics.jsonl`.
        check_ranks: Of several processes: compare soft tokens and trained weights in every step, and stop where they
            differ.
        shard_reader: Of several processes: each keeps a part of every layer of the reader, which then need not fit one
            device.
        report_to: Trackers that get what `metrics.jsonl` gets: tensorboard, trackio, wandb.
    """

    output: str = "runs/model"
    seed: int = 0
    save_every: int = 50
    keep_checkpoints: int = 2
    log_every: int = 5
    check_ranks: bool = False
    shard_reader: bool = False
    report_to: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("save_every", "keep_checkpoints", "log_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"run.{name} must be at least 1, got {getattr(self, name)}.")
        unknown = [name for name in self.report_to if name not in TRACKERS]
        if unknown:
            raise ConfigError(f"unknown run.report_to {unknown[0]!r}. Use one of: {', '.join(TRACKERS)}.")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that a training run is.

    Attributes:
        baseline: Train this instead of the method, on the same reader; its own learning rate is `optim.learning_rate`,
            and that of static soft tokens `optim.anchor_learning_rate`.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    baseline: BaselineConfig | None = None
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    run: RunConfig = field(default_factory=RunConfig)
    text_states: TextStatesConfig = field(default_factory=TextStatesConfig)
    health: HealthConfig = field(default_factory=HealthConfig)

    def __post_init__(self) -> None:
        reads_before = self.baseline is None or self.baseline.kind == "static"
        if self.model.reader.quantization is not None and not reads_before:
            raise ConfigError("model.reader.quantization is for readers that nothing trains. Leave it out.")
        if self.run.shard_reader:
            self._check_sharding(reads_before)
        if self.text_states.keeps_any and not (reads_before and self.model.placement == "suffix"):
            raise ConfigError(
                "text_states needs texts that are read before anything trained: placement 'suffix', and no baseline "
                "that trains the reader. Leave text_states out."
            )

    def _check_sharding(self, frozen: bool) -> None:
        if not frozen:
            raise ConfigError("run.shard_reader is for readers that nothing trains. Set it to false.")
        if self.model.reader.quantization is not None:
            raise ConfigError("run.shard_reader does not go with model.reader.quantization. Leave one of them out.")
        if self.evaluation.sts is not None:
            raise ConfigError(
                "run.shard_reader does not go with evaluation.sts: one process would call the reader more often than "
                "the others. Hold out rows instead (data.held_out)."
            )

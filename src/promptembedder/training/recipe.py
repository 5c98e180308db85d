"""Training recipe: dataclasses that are filled by one YAML file or from Python."""

from dataclasses import dataclass, field

from promptembedder.backbone import TextCacheConfig
from promptembedder.errors import ConfigError, short_repr
from promptembedder.method import ModelConfig
from promptembedder.model import BaselineConfig
from promptembedder.training.monitor import MonitorConfig

ANY_COLUMNS = ("anchor", "positive")
TRACKERS = ("tensorboard", "trackio", "wandb")

__all__ = [
    "ANY_COLUMNS",
    "DataConfig",
    "EvaluationConfig",
    "LossConfig",
    "MonitorConfig",
    "OptimConfig",
    "Recipe",
    "RunConfig",
]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Source of the training data: exactly one of `mixture`, `pairs` and `hub`.

    Attributes:
        mixture: Path of a JSON file that lists tasks with their files and instructions.
        tasks: Names of the mixture's tasks to use; if empty, all are used.
        pairs: File of rows with `anchor`, `positive` and optionally `negative`, or other columns that contain pairs.
        hub: Data set id of the hub, or a local folder of the same layout.
        hub_subset: Configuration name of the hub's data set.
        hub_split: Split of the hub's data set.
        columns: Names of the anchor column, the positive column and optionally the negative column. For `pairs` the
            default detects them: these names, other usual names, or the only two columns of JSON lines or Parquet.
        instruction_column: Column of `pairs` with the instruction of each row's anchor. If None, the column
            `instruction`, if there is one. Rows of one anchor are each other's negatives.
        delimiter: Character between the values of CSV files. If None, detected in the header row.
        encoding: Encoding of CSV and JSONL files.
        instructions: Instruction variants for `pairs` and `hub`. One is drawn for each batch.
        document_instructions: Instruction variants for the documents. If empty, the default instruction is used.
        in_batch_negatives: Use the positives of other rows as negatives. Set it to false for label data of `pairs` and
            `hub`, where the positive of another row may be correct, too.
        require_negative: Drop rows without a negative.
        corpora: JSON file that lists labelled corpora: texts with several labels and an instruction per attribute.
            Alone, or beside one of the other sources.
        corpus_names: Names of the corpora to use. If empty, all.
        attributes_per_step: Attributes that the texts of a step are embedded under. Each text is prefilled once.
        limit: Number of rows of each task, drawn with the seed. If None, all rows are used.
        held_out: Number of rows of each task that are held out for the evaluation loss.
        held_out_variants: Number of instruction variants of each task of a mixture, the last ones, that are not used in
            training.
    """

    mixture: str | None = None
    tasks: tuple[str, ...] = ()
    pairs: str | None = None
    hub: str | None = None
    hub_subset: str | None = None
    hub_split: str = "train"
    columns: tuple[str, ...] = ANY_COLUMNS
    instruction_column: str | None = None
    delimiter: str | None = None
    encoding: str = "utf-8"
    instructions: tuple[str, ...] = ()
    document_instructions: tuple[str, ...] = ()
    in_batch_negatives: bool = True
    require_negative: bool = False
    corpora: str | None = None
    corpus_names: tuple[str, ...] = ()
    attributes_per_step: int = 3
    limit: int | None = None
    held_out: int = 0
    held_out_variants: int = 0

    def __post_init__(self) -> None:
        given = [name for name in ("mixture", "pairs", "hub") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ConfigError(f"data names several sources: {', '.join(given)}. Give exactly one.")
        if len(self.columns) not in (2, 3) or len(set(self.columns)) < len(self.columns):
            raise ConfigError(
                "data.columns must name anchor, positive and maybe negative, each another column, got "
                f"{short_repr(list(self.columns))}."
            )
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"data.limit must be at least 1, got {self.limit}. Leave it out to take all rows.")
        if self.attributes_per_step < 1:
            raise ConfigError(f"data.attributes_per_step must be at least 1, got {self.attributes_per_step}. Try 3.")
        for name in ("held_out", "held_out_variants"):
            if getattr(self, name) < 0:
                raise ConfigError(f"data.{name} must not be negative, got {getattr(self, name)}.")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """InfoNCE (sentence-transformers' MultipleNegativesRankingLoss).

    Attributes:
        temperature: Divides the cosines. Unitless, > 0. Independent of the temperature of the relaxation.
        symmetric: Add the loss of finding the anchor among the batch's anchors, given its positive.
        stepwise: Average the loss over the embeddings after one soft token, two, and so on. See `StepwiseLoss`.
    """

    temperature: float = 0.05
    symmetric: bool = False
    stepwise: bool = False

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ConfigError(f"loss.temperature must be > 0, got {self.temperature}. Try 0.05.")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with a warm-up, then a linear decay or a constant rate.

    Attributes:
        steps: Number of steps. Ignored if `epochs` is set.
        epochs: Number of passes over the training data. If None, `steps` decides.
        batch_size: Number of rows of a step, summed over all processes.
        learning_rate: Learning rate of the prompter.
        alignment_learning_rate: Learning rate of the alignment, the deeper alignments and the output projection.
        soft_prompt_learning_rate: Learning rate of the prompter's soft prompt and of static soft tokens.
        schedule: Learning-rate schedule after the warm-up, `linear` or `constant`.
        max_grad_norm: Norm to which gradients are clipped.
    """

    steps: int = 100
    epochs: float | None = None
    batch_size: int = 24
    learning_rate: float = 3e-4
    alignment_learning_rate: float = 2e-3
    soft_prompt_learning_rate: float = 1e-2
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
            "soft_prompt_learning_rate",
            "max_grad_norm",
        ):
            if not getattr(self, name) > 0:
                raise ConfigError(f"optim.{name} must be > 0, got {getattr(self, name)}.")
        if self.epochs is not None and not self.epochs > 0:
            raise ConfigError(f"optim.epochs must be > 0, got {self.epochs}. Leave it out to use optim.steps.")
        if self.batch_size < 2:
            raise ConfigError("optim.batch_size must be at least 2, because the other rows are the negatives.")
        if self.schedule not in ("linear", "constant"):
            raise ConfigError(f"unknown optim.schedule {short_repr(self.schedule)}. Use linear or constant.")


@dataclass(frozen=True, kw_only=True)
class InstructionPoolingConfig:
    """Training of the instruction pooling before the other parts.

    Neither the texts' states nor the tokens of an untrained prompter change meanwhile. Both are computed once, and a
    step passes through no LLM.

    Attributes:
        steps: Number of steps. 0: it is trained with the other parts only.
        texts: Maximum number of texts of each labelled corpus. Of other tasks, half as many pairs.
        batch_size: Texts or pairs of a step, all of one corpus or task.
        learning_rate: Learning rate of AdamW, which decays to zero.
    """

    steps: int = 0
    texts: int = 500
    batch_size: int = 96
    learning_rate: float = 2e-3

    def __post_init__(self) -> None:
        if self.steps < 0 or self.texts < 4 or self.batch_size < 4 or not self.learning_rate > 0:
            raise ConfigError(
                "instruction_pooling needs steps of at least 0, texts and batch_size of at least 4, learning_rate > 0."
            )


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Validation during training: a similarity benchmark, the held-out rows (`data.held_out`), or both.

    The validation score is Spearman's correlation on `sts` if it is set, otherwise the negative mean held-out loss.

    Attributes:
        sts: File of rows with `sentence1`, `sentence2` and `score`. If None, only the loss is evaluated.
        split: Value of the column `split` of the rows to use. If None, all rows are used.
        instruction: Instruction of both sentences.
        limit: Number of rows to use, the first ones. If None, all rows are used.
        every: Number of steps between evaluations. 0 evaluates at the end only.
        keep_best: Save the weights of the step with the best validation score instead of the last step. A checkpoint is
            then saved at each evaluation.
        patience: Number of successive evaluations without a better score after which training stops. Needs `keep_best`.
            If None, training does not stop early.
    """

    sts: str | None = None
    split: str | None = None
    instruction: str = "Retrieve semantically similar text"
    limit: int | None = None
    every: int = 0
    keep_best: bool = False
    patience: int | None = None

    def __post_init__(self) -> None:
        if self.keep_best and self.every < 1:
            raise ConfigError(
                "evaluation.keep_best compares evaluations during training. Set evaluation.every, try 20."
            )
        if self.patience is not None and not self.keep_best:
            raise ConfigError("evaluation.patience stops after the best step. Set evaluation.keep_best=true.")
        if self.patience is not None and self.patience < 1:
            raise ConfigError(f"evaluation.patience must be at least 1, got {self.patience}. Leave it out for none.")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Output, checkpoints and logging of a run.

    Attributes:
        output: Folder of the trained model, its checkpoints and `metrics.jsonl`.
        initial_model: Saved model whose weights training starts from, as folder or hub id. `model` must be its
            configuration. If None, an untrained model.
        save_every: Number of steps between checkpoints.
        keep_checkpoints: Number of newest checkpoints to keep. Older ones are deleted.
        log_every: Number of steps between lines of `metrics.jsonl`.
        check_ranks: With several processes, compare soft tokens and trained weights between them in every step, and
            stop if they differ.
        shard_reader: With several processes, store a part of every layer of the reader on each of them, so that the
            reader need not fit on one device.
        report_to: Trackers that receive the lines of `metrics.jsonl`: tensorboard, trackio, wandb.
    """

    output: str = "runs/model"
    initial_model: str | None = None
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
    """Complete description of a training run.

    Attributes:
        baseline: Baseline to train on the same reader instead of the method. Its learning rate is
            `optim.learning_rate`, and the learning rate of static soft tokens `optim.soft_prompt_learning_rate`.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    baseline: BaselineConfig | None = None
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    instruction_pooling: InstructionPoolingConfig = field(default_factory=InstructionPoolingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    run: RunConfig = field(default_factory=RunConfig)
    text_cache: TextCacheConfig = field(default_factory=TextCacheConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)

    def __post_init__(self) -> None:
        frozen_reader = self.baseline is None or self.baseline.kind == "static"
        if self.model.reader.quantization is not None and not frozen_reader:
            raise ConfigError("model.reader.quantization needs a frozen reader. Leave it out.")
        if self.run.initial_model is not None and (self.baseline is not None or self.run.shard_reader):
            raise ConfigError("run.initial_model needs a PromptEmbedder with a whole reader. Leave it out.")
        if self.run.shard_reader:
            self._check_sharding(frozen=frozen_reader)
        if self.text_cache.keeps_any and not (frozen_reader and self.model.placement == "suffix"):
            raise ConfigError(
                "text_cache needs text states that training does not change: placement 'suffix', and no baseline "
                "that trains the reader. Leave text_cache out."
            )

    def _check_sharding(self, *, frozen: bool) -> None:
        if not frozen:
            raise ConfigError("run.shard_reader needs a frozen reader. Set it to false.")
        if self.model.reader.quantization is not None:
            raise ConfigError("run.shard_reader cannot be combined with model.reader.quantization. Remove one of them.")
        if self.evaluation.sts is not None:
            raise ConfigError(
                "run.shard_reader cannot be combined with evaluation.sts: one process would call the reader more often "
                "than the others. Hold out rows instead (data.held_out)."
            )

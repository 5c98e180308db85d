"""Which words a batch is read under."""

from promptembedder.method import ModelConfig
from promptembedder.model import PromptEmbedder
from promptembedder.training import InstructionCollator, InstructionVariants

VARIANTS = {
    "same": InstructionVariants(("say it again", "once more", "repeat"), ("say it again", "once more", "repeat")),
    "ask": InstructionVariants(("answer", "reply", "respond"), ()),
}


def _rows(task: str, start: int) -> list[dict[str, str]]:
    return [{"anchor": f"a{i}", "positive": f"b{i}", "dataset_name": task} for i in range(start, start + 4)]


def _drawn(collator: InstructionCollator, task: str, start: int) -> tuple[str, str]:
    batch = collator(_rows(task, start))
    return batch["anchor_instruction"], batch["positive_instruction"]


def _collator(tiny_model: ModelConfig, seed: int = 0) -> InstructionCollator:
    model = PromptEmbedder.create(config=tiny_model, device="cpu")
    return InstructionCollator(preprocess_fn=model.preprocess, variants=VARIANTS, seed=seed)


def test_both_sides_of_a_symmetric_task_share_one_wording(tiny_model: ModelConfig) -> None:
    collator = _collator(tiny_model)
    for start in range(20):
        anchor, positive = _drawn(collator, "same", start)
        assert anchor == positive


def test_documents_without_instruction_get_the_default_one(tiny_model: ModelConfig) -> None:
    assert _drawn(_collator(tiny_model), "ask", 0)[1] == tiny_model.default_instruction


def test_every_wording_is_drawn_sooner_or_later(tiny_model: ModelConfig) -> None:
    collator = _collator(tiny_model)
    assert {_drawn(collator, "ask", start)[0] for start in range(60)} == set(VARIANTS["ask"].anchor)


def test_a_batchs_wording_depends_on_its_rows_and_the_seed_alone(tiny_model: ModelConfig) -> None:
    """A resumed run collates only the batches it still needs; a running generator would be out of step."""
    first, second = _collator(tiny_model), _collator(tiny_model)
    straight = [_drawn(first, "same", start) for start in range(12)]
    backwards = [_drawn(second, "same", start) for start in reversed(range(12))]
    assert straight == backwards[::-1]
    other_seed = _collator(tiny_model, seed=1)
    assert straight != [_drawn(other_seed, "same", start) for start in range(12)]

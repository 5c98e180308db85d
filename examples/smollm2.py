"""Answer generation with SmolLM2, the LLM that is also the reader, with its LM head."""

from collections.abc import Sequence
from functools import cache

from promptembedder.backbone import Backbone, BackboneConfig, load_backbone

__all__ = ["answer"]


@cache
def _smollm2() -> Backbone:
    return load_backbone(BackboneConfig(source="smollm2-135m"), head=True)


def answer(question: str, found: Sequence[str], *, max_new_tokens: int = 40) -> str:
    """Generate an answer to the question from the texts. The model has 135M parameters and is often wrong."""
    backbone = _smollm2()
    tokenizer = backbone.tokenizer.hf
    notes = "\n".join(found)
    asked = f"Answer the question from these notes, in one sentence.\n\nNotes:\n{notes}\n\nQuestion: {question}"
    tokens = tokenizer.apply_chat_template(
        [{"role": "user", "content": asked}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    written = backbone.model.generate(**tokens, max_new_tokens=max_new_tokens, do_sample=False)
    text = tokenizer.decode(written[0, tokens["input_ids"].shape[1] :], skip_special_tokens=True)
    return (text.strip().splitlines() or [""])[0]

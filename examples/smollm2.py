"""SmolLM2 as it is, to answer from what was found: the same frozen LLM that reads the texts, with its output layer."""

from collections.abc import Sequence
from functools import cache

from promptembedder.backbone import Backbone, BackboneConfig, load_backbone

__all__ = ["answer"]


@cache
def _smollm2() -> Backbone:
    return load_backbone(BackboneConfig(source="smollm2-135m"), head=True)


def answer(question: str, found: Sequence[str], *, max_new_tokens: int = 40) -> str:
    """What SmolLM2 says to the question when it is shown the texts. 135M parameters: it is often wrong."""
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

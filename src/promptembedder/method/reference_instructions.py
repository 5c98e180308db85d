"""Reference instructions that the statistics of the prompter's hidden states are computed from."""

__all__ = ["REFERENCE_INSTRUCTIONS"]

_WORDINGS = (
    "Group the texts by {aspect}",
    "Represent the text by {aspect} and ignore everything else",
    "Find texts that agree in {aspect}",
    "How do the texts differ in {aspect}?",
)

_ASPECTS = (
    "their topic",
    "the writer's opinion",
    "the emotion that is expressed",
    "the language",
    "the question that is asked",
    "the place where it happens",
    "the time when it happens",
    "the person who acts",
    "the company or product",
    "the price and value",
    "the quality of the service",
    "the style and register",
    "the grammar of the sentence",
    "the genre of the document",
    "the reading level",
    "the programming language",
    "the cause of the problem",
    "the intended next step",
    "the scientific field",
    "the claim that is argued for",
    "the urgency of the request",
    "the facts that are reported",
    "the meaning of the sentence",
    "the answer to the question",
)

REFERENCE_INSTRUCTIONS = tuple(
    _WORDINGS[(number + shift) % len(_WORDINGS)].format(aspect=aspect)
    for number, aspect in enumerate(_ASPECTS)
    for shift in range(2)
)

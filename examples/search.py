"""Semantic search with one instruction for queries, one for documents: python examples/search.py MODEL_OR_BACKBONE."""

import sys
from pathlib import Path

from sentence_transformers.util import semantic_search

from promptembedder import PromptEmbedder

QUESTIONS = ["Why is the sky blue?", "How do I boil an egg?"]
DOCUMENTS = [
    "Air scatters short waves of light more than long ones, so the sky looks blue.",
    "Put the egg into boiling water and take it out after seven minutes.",
    "The museum is closed on Mondays.",
    "Trains to the coast leave every hour.",
]


def main(name: str) -> None:
    """Print the two best documents for each question."""
    known = Path(name).is_dir()
    model = PromptEmbedder.from_pretrained(name) if known else PromptEmbedder.create(prompter=name)
    model.prompts = {"query": "Find the text that answers the question", "document": "Represent the text for retrieval"}
    hits = semantic_search(model.encode_query(QUESTIONS), model.encode_document(DOCUMENTS), top_k=2)
    for question, found in zip(QUESTIONS, hits, strict=True):
        print(question)
        for hit in found:
            print(f"  {hit['score']:.3f}  {DOCUMENTS[hit['corpus_id']]}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m")

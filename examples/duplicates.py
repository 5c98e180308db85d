"""Duplicate texts as pairs and as groups: python examples/duplicates.py MODEL_FOLDER_OR_BACKBONE."""

import sys
from pathlib import Path

import torch
from sentence_transformers.util import community_detection, paraphrase_mining_embeddings

from promptembedder import PromptEmbedder

TEXTS = [
    "How can I reset my password?",
    "What are your opening hours?",
    "How can I reset my password ?",
    "When are you open?",
    "Do you ship to Norway?",
]


def main(name: str) -> None:
    """Print the three most similar pairs, then the groups."""
    known = Path(name).is_dir()
    model = PromptEmbedder.from_pretrained(name) if known else PromptEmbedder.create(prompter=name)
    vectors = torch.tensor(model.encode(TEXTS, prompt="Retrieve questions that ask the same"))
    for score, first, second in paraphrase_mining_embeddings(vectors)[:3]:
        print(f"{score:.3f}  {TEXTS[first]}  =  {TEXTS[second]}")
    for group in community_detection(vectors, threshold=0.8, min_community_size=2):
        print("group:", "; ".join(TEXTS[place] for place in group))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m")

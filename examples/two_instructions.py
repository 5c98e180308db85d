"""Show which of ten texts are nearest to each other under one instruction, and under another.

promptembedder train recipes/steering.yaml --set data.corpora=YOUR_CORPORA.json
python examples/two_instructions.py runs/steering
"""

import sys

import numpy as np

from promptembedder import PromptEmbedder

TWEETS = [
    "@united my flight was cancelled again and no help at all",
    "@united best crew ever, thank you!",
    "@united where is my bag? two days now",
    "@united smooth landing, great job",
    "@southwestair lost my luggage, terrible",
    "@southwestair thanks for the quick rebooking, love you guys",
    "@southwestair great flight today",
    "@americanair worst customer service I have seen",
    "@americanair on hold for two hours, unacceptable",
    "@americanair the pilot was wonderful, thanks",
]
INSTRUCTIONS = ["Which airline?", "Is the passenger happy or angry?"]


def main(folder: str) -> None:
    """Print each tweet with the one nearest to it, under each instruction."""
    model = PromptEmbedder.from_pretrained(folder)
    vectors = model.encode_instructions(TWEETS, INSTRUCTIONS)  # [instructions, texts, dim], one pass over the texts
    for instruction, embedded in zip(INSTRUCTIONS, vectors, strict=True):
        cosines = embedded @ embedded.T
        np.fill_diagonal(cosines, -1)
        print(instruction)
        for tweet, nearest in zip(TWEETS, cosines.argmax(axis=1), strict=True):
            print(f"  {tweet:<60} {TWEETS[nearest]}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs/steering")

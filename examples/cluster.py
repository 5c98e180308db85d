"""The same texts clustered under two instructions: python examples/cluster.py MODEL_FOLDER_OR_BACKBONE."""

import sys
from pathlib import Path

from sklearn.cluster import KMeans

from promptembedder import PromptEmbedder

TEXTS = [
    "I love this camera, the pictures are sharp.",
    "This camera broke after a week, what a waste.",
    "The camera does what it should, I am happy.",
    "I love this kettle, the water boils at once.",
    "The kettle leaks, I want my money back.",
    "The kettle is quiet and quick, well done.",
]
INSTRUCTIONS = ["Group reviews by the product", "Group reviews by whether the writer is pleased"]


def main(name: str) -> None:
    """Print the clusters under both instructions, from one prefill of the texts."""
    known = Path(name).is_dir()
    model = PromptEmbedder.from_pretrained(name) if known else PromptEmbedder.create(prompter=name)
    for instruction, vectors in zip(INSTRUCTIONS, model.encode_instructions(TEXTS, INSTRUCTIONS), strict=True):
        print(instruction)
        clusters = KMeans(n_clusters=2, n_init=10, random_state=0).fit_predict(vectors)
        for cluster, text in sorted(zip(clusters.tolist(), TEXTS, strict=True)):
            print(f"  {cluster}  {text}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m")

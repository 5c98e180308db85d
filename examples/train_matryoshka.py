"""Train with mined hard negatives and Matryoshka loss: python examples/train_matryoshka.py MODEL_OR_BACKBONE [OUTPUT].

All of it sentence-transformers' own: mining, loss, trainer, evaluator. `PromptEmbedderTrainer` takes the same arguments
and embeds all columns of a step in one pass, logs the soft tokens' health, and goes on after a kill.
"""

import sys
from pathlib import Path

from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss, MultipleNegativesRankingLoss
from sentence_transformers.util import mine_hard_negatives

from promptembedder import PromptEmbedder
from promptembedder.training import PromptEmbedderTrainer

FIND = "Find the text that answers the question"
PAIRS = {
    "anchor": ["Who wrote Faust?", "What is H2O?", "Where is Oslo?", "What do cows eat?"],
    "positive": ["Goethe wrote Faust.", "H2O is water.", "Oslo is in Norway.", "Cows eat grass."],
}


def main(name: str, output: str = "runs/matryoshka") -> None:
    """Train two steps and print the score of embeddings with half the dimension."""
    known = Path(name).is_dir()
    model = PromptEmbedder.from_pretrained(name) if known else PromptEmbedder.create(prompter=name)
    mined = mine_hard_negatives(
        Dataset.from_dict(PAIRS), model, num_negatives=1, query_prompt=FIND, output_format="triplet", verbose=False
    )
    width = model.get_embedding_dimension()
    arguments = SentenceTransformerTrainingArguments(
        output_dir=output,
        max_steps=2,
        per_device_train_batch_size=4,
        learning_rate=3e-4,
        prompts={"anchor": FIND},
        logging_steps=1,
        save_strategy="no",
        report_to="none",  # or tensorboard, trackio, wandb
    )
    loss = MatryoshkaLoss(model, MultipleNegativesRankingLoss(model), [width, width // 2])
    PromptEmbedderTrainer(model=model, args=arguments, train_dataset=mined, loss=loss).train()
    model.save(f"{output}/final")
    scores = [1.0] * 4 + [0.0] * 4
    first, second = 2 * PAIRS["anchor"], PAIRS["positive"] + PAIRS["positive"][::-1]
    print(EmbeddingSimilarityEvaluator(first, second, scores, truncate_dim=width // 2)(model))


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["smollm2-135m"]))

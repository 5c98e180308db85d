"""What sentence-transformers documents for its models works here: its own classes, against plain computations."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.evaluation import (
    BinaryClassificationEvaluator,
    EmbeddingSimilarityEvaluator,
    InformationRetrievalEvaluator,
    RerankingEvaluator,
    SequentialEvaluator,
    TripletEvaluator,
)
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)
from sentence_transformers.util import community_detection, mine_hard_negatives, paraphrase_mining, semantic_search
from sklearn.metrics import average_precision_score

from promptembedder import PromptEmbedder
from promptembedder.data import check_text_list, clean_instruction, clean_text
from promptembedder.errors import DataError
from promptembedder.method import soft_token_encoder
from promptembedder.storage import hash_files
from promptembedder.training import PromptEmbedderTrainer

NewModel = Callable[..., PromptEmbedder]
FIND, STORE = "find the thing", "say what it is"
LEFT = ["a red house", "cold winter", "a fast car", "an old song", "the deep river"]
RIGHT = ["the house is red", "it is cold", "cars are fast", "a song of old", "how deep the river is"]


@pytest.fixture
def model(new_model: NewModel) -> PromptEmbedder:
    return new_model("tiny-qwen3")


# -- encoding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "kind"), [("int8", np.int8), ("uint8", np.uint8)])
def test_eight_bit_vectors_are_the_buckets_between_least_and_greatest(
    precision: str, kind: type, model: PromptEmbedder
) -> None:
    vectors = model.encode(LEFT, prompt=FIND)
    low, high = vectors.min(axis=0), vectors.max(axis=0)
    buckets = (vectors - low) / ((high - low) / 255)
    expected = (buckets - 128 if precision == "int8" else buckets).astype(kind)
    found = model.encode(LEFT, prompt=FIND, precision=precision)
    assert found.dtype == kind
    # a value on the border of two buckets may fall into either
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1


def test_binary_vectors_are_the_signs_eight_to_a_byte(model: PromptEmbedder) -> None:
    vectors = model.encode(LEFT, prompt=FIND)
    bits = np.packbits(vectors > 0, axis=1)
    np.testing.assert_array_equal(model.encode(LEFT, prompt=FIND, precision="ubinary"), bits)
    signed = (bits.astype(int) - 128).astype(np.int8)
    np.testing.assert_array_equal(model.encode(LEFT, prompt=FIND, precision="binary"), signed)


def test_truncated_vectors_are_the_first_numbers(model: PromptEmbedder) -> None:
    whole = model.encode(LEFT, prompt=FIND)
    np.testing.assert_array_equal(model.encode(LEFT, prompt=FIND, truncate_dim=8), whole[:, :8])
    unit = whole[:, :8] / np.linalg.norm(whole[:, :8], axis=1, keepdims=True)
    found = model.encode(LEFT, prompt=FIND, truncate_dim=8, normalize_embeddings=True)
    np.testing.assert_allclose(found, unit, atol=1e-6)
    with model.truncate_embeddings(4):
        np.testing.assert_array_equal(model.encode(LEFT, prompt=FIND), whole[:, :4])
    model.truncate_dim = 16
    assert model.get_embedding_dimension() == 16


@pytest.mark.parametrize("name", ["cosine", "dot", "euclidean", "manhattan"])
def test_similarity_is_the_one_that_was_chosen(name: str, model: PromptEmbedder) -> None:
    model.similarity_fn_name = name
    left, right = 2 * model.encode(LEFT), model.encode(RIGHT)
    expected = {
        "cosine": left @ right.T / 2,
        "dot": left @ right.T,
        "euclidean": -np.sqrt(((left[:, None] - right) ** 2).sum(-1)),
        "manhattan": -np.abs(left[:, None] - right).sum(-1),
    }[name]
    np.testing.assert_allclose(model.similarity(left, right).numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(model.similarity_pairwise(left, right).numpy(), expected.diagonal(), atol=1e-5)


def test_other_processes_give_the_same_vectors(model: PromptEmbedder) -> None:
    """One small case: each process imports torch, which takes seconds."""
    model.compile_instructions([STORE])
    alone = [model.encode(LEFT, prompt=instruction) for instruction in (FIND, STORE)]
    pool = model.start_multi_process_pool(["cpu"])
    try:
        for instruction, expected in zip((FIND, STORE), alone, strict=True):
            found = model.encode(LEFT, prompt=instruction, pool=pool, chunk_size=2)
            np.testing.assert_allclose(found, expected, atol=1e-6)
    finally:
        model.stop_multi_process_pool(pool)


# -- sentence-transformers' functions ----------------------------------------------------------------------------------


def test_semantic_search_and_mining_find_what_plain_cosines_find(model: PromptEmbedder) -> None:
    queries, documents = model.encode(LEFT, prompt=FIND), model.encode(RIGHT, prompt=STORE)
    found = semantic_search(queries, documents, top_k=2)
    order = (-(queries @ documents.T)).argsort(axis=1)[:, :2]
    assert [[hit["corpus_id"] for hit in hits] for hits in found] == order.tolist()

    cosines = documents @ documents.T
    score, first, second = paraphrase_mining(model, RIGHT, prompt=STORE)[0]
    best = np.where(np.triu(np.ones_like(cosines), k=1) > 0, cosines, -2)
    assert (first, second) == np.unravel_index(best.argmax(), best.shape)
    assert score == pytest.approx(best.max(), abs=1e-5)

    groups = community_detection(torch.tensor(documents), threshold=float(best.max()) - 1e-4, min_community_size=2)
    assert [sorted(group) for group in groups] == [[first, second]]


def test_mined_negatives_are_the_nearest_wrong_answers(model: PromptEmbedder) -> None:
    pairs = Dataset.from_dict({"query": LEFT, "answer": RIGHT})
    mined = mine_hard_negatives(
        pairs,
        model,
        num_negatives=1,
        query_prompt=FIND,
        corpus_prompt=STORE,
        output_format="triplet",
        verbose=False,
    )
    cosines = model.encode(LEFT, prompt=FIND) @ model.encode(RIGHT, prompt=STORE).T
    np.fill_diagonal(cosines, -2)
    assert {row["query"]: row["negative"] for row in mined} == {
        query: RIGHT[place] for query, place in zip(LEFT, cosines.argmax(axis=1), strict=True)
    }


# -- evaluators --------------------------------------------------------------------------------------------------------


def test_evaluators_score_what_plain_cosines_score(model: PromptEmbedder) -> None:
    model.prompts = {"query": FIND, "document": STORE}
    names = [str(place) for place in range(len(LEFT))]
    search = InformationRetrievalEvaluator(
        dict(zip(names, LEFT, strict=True)),
        dict(zip(names, RIGHT, strict=True)),
        {name: {name} for name in names},
        accuracy_at_k=[1],
        mrr_at_k=[5],
        ndcg_at_k=[5],
        map_at_k=[5],
        precision_recall_at_k=[1],
    )
    cosines = model.encode(LEFT, prompt=FIND) @ model.encode(RIGHT, prompt=STORE).T
    places = 1 + (cosines > cosines.diagonal()[:, None]).sum(axis=1)
    scores = search(model)
    assert scores["cosine_accuracy@1"] == pytest.approx((places == 1).mean())
    assert scores["cosine_mrr@5"] == pytest.approx((1 / places).mean())
    assert scores["cosine_ndcg@5"] == pytest.approx((1 / np.log2(1 + places)).mean())

    left, right = model.encode(LEFT), model.encode(RIGHT)
    pairs, gold = (left * right).sum(axis=1), [0.1, 0.9, 0.4, 0.7, 0.2]
    ranks = [np.argsort(np.argsort(values)) for values in (pairs, gold)]
    alike = EmbeddingSimilarityEvaluator(LEFT, RIGHT, gold)
    spearman = float(np.corrcoef(*ranks)[0, 1])
    triplets = TripletEvaluator(LEFT, RIGHT, RIGHT[1:] + RIGHT[:1])
    closer = float((pairs > (left * np.roll(right, -1, axis=0)).sum(axis=1)).mean())
    both = SequentialEvaluator([alike, triplets], main_score_function=sum)(model)
    assert both["sequential_score"] == pytest.approx(spearman + closer, abs=1e-5)

    labels = [1, 0, 1, 0, 0]
    same = BinaryClassificationEvaluator(LEFT, RIGHT, labels)(model)
    assert same["cosine_ap"] == pytest.approx(average_precision_score(labels, pairs))
    samples = [{"query": LEFT[0], "positive": RIGHT[:1], "negative": RIGHT[1:]}]
    reranked = RerankingEvaluator(samples)(model)
    assert reranked["map"] == pytest.approx(1 / places[0])


# -- training ----------------------------------------------------------------------------------------------------------


def _trained(
    model: PromptEmbedder, loss: torch.nn.Module, folder: Path, trainer: type, **options: Any
) -> SentenceTransformerTrainer:
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        max_steps=2,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        logging_steps=1,
        prompts={"anchor": FIND, "positive": STORE},
        save_strategy="no",
        use_cpu=True,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        report_to=options.pop("report_to", "none"),
        **options,
    )
    made = trainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict({"anchor": LEFT, "positive": RIGHT}),
        loss=loss,
        evaluator=EmbeddingSimilarityEvaluator(LEFT, RIGHT, [0.1, 0.9, 0.4, 0.7, 0.2], name="alike"),
    )
    made.train()
    return made


def _losses(trainer: SentenceTransformerTrainer) -> list[float]:
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def test_matryoshka_training_is_the_same_with_either_trainer(new_model: NewModel, tmp_path: Path) -> None:
    losses = []
    for trainer in (SentenceTransformerTrainer, PromptEmbedderTrainer):
        model = new_model("tiny-qwen3")
        loss = MatryoshkaLoss(model, MultipleNegativesRankingLoss(model, scale=5), [32, 16, 8])
        model.train()
        rows = [model.preprocess(texts, prompt=words) for texts, words in ((LEFT[:4], FIND), (RIGHT[:4], STORE))]
        start = float(loss(rows, None).detach())
        # the loss is the sum over the widths of the loss of the first numbers of each vector
        left, right = (model(row)["sentence_embedding"].detach() for row in rows)
        plain = 0.0
        for width in (32, 16, 8):
            units = [torch.nn.functional.normalize(side[:, :width]) for side in (left, right)]
            plain += float(torch.nn.functional.cross_entropy(5 * units[0] @ units[1].T, torch.arange(4)))
        assert start == pytest.approx(plain, rel=1e-4)
        losses.append(_losses(_trained(model, loss, tmp_path / trainer.__name__, trainer)))
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


def test_cached_gradients_train_as_plain_ones_do(new_model: NewModel, tmp_path: Path) -> None:
    losses, weights = [], []
    for cached in (False, True):
        model = new_model("tiny-qwen3")
        if cached:
            loss = CachedMultipleNegativesRankingLoss(model, scale=5, mini_batch_size=2)
        else:
            loss = MultipleNegativesRankingLoss(model, scale=5)
        losses.append(_losses(_trained(model, loss, tmp_path / str(cached), PromptEmbedderTrainer)))
        weights.append(torch.cat([weight.detach().flatten() for weight in model.encoder.trained_weights()]))
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    assert (weights[0] - weights[1]).norm() < 1e-3 * weights[0].norm()


# -- saving and loading ------------------------------------------------------------------------------------------------


def test_a_plain_sentence_transformer_opens_a_saved_folder(model: PromptEmbedder, tmp_path: Path) -> None:
    model.prompts = {"query": FIND, "document": STORE}
    model.similarity_fn_name = "dot"
    model.save(str(tmp_path / "saved"))
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    opened = SentenceTransformer(str(tmp_path / "saved"), device="cpu", trust_remote_code=True)
    assert type(opened) is SentenceTransformer
    assert (opened.prompts, opened.similarity_fn_name) == (model.prompts, "dot")
    for options in ({}, {"prompt": "name the colour"}, {"prompt_name": "query"}):
        np.testing.assert_array_equal(opened.encode(LEFT, **options), model.encode(LEFT, **options))
    np.testing.assert_array_equal(opened.encode_document(RIGHT), model.encode_document(RIGHT))
    opened.save(str(tmp_path / "again"))
    again = PromptEmbedder.from_pretrained(tmp_path / "again", device="cpu")
    np.testing.assert_array_equal(again.encode_query(LEFT), model.encode_query(LEFT))


def test_no_class_is_loaded_because_a_saved_folder_names_it(model: PromptEmbedder, tmp_path: Path) -> None:
    model.save(str(tmp_path))
    listed = (tmp_path / "modules.json").read_text()
    (tmp_path / "modules.json").write_text(listed.replace("promptembedder.method.dual_encoder", "evil_module"))
    hash_files(tmp_path)  # as somebody would who wants it believed
    opened = PromptEmbedder.from_pretrained(tmp_path, device="cpu")
    np.testing.assert_array_equal(opened.encode(LEFT), model.encode(LEFT))


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def as_users_run_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this suite's type checks, which would refuse wrong types first."""
    encoder = soft_token_encoder.SoftTokenEncoder
    for owner, name in (
        (PromptEmbedder, "preprocess"),
        (PromptEmbedder, "encode_instructions"),
        (PromptEmbedder, "compile_instructions"),
        (PromptEmbedder, "fit_whitening"),
        (encoder, "instruction_of"),
        (encoder, "instructed_features"),
        (encoder, "token_features"),
    ):
        monkeypatch.setattr(owner, name, inspect.unwrap(getattr(owner, name)))
    from promptembedder.method import dual_encoder, text_encoder

    monkeypatch.setattr(dual_encoder.DualEncoder, "preprocess", inspect.unwrap(dual_encoder.DualEncoder.preprocess))
    for module in (dual_encoder, soft_token_encoder, text_encoder):
        monkeypatch.setattr(module, "clean_text", inspect.unwrap(clean_text))
    monkeypatch.setattr(soft_token_encoder, "clean_instruction", inspect.unwrap(clean_instruction))
    monkeypatch.setattr("promptembedder.model.embedder.check_text_list", inspect.unwrap(check_text_list))


@pytest.mark.parametrize("wrong", [3, ["find", "store"], b"find", {"query": "find"}])
def test_an_instruction_of_another_type_is_refused(wrong: Any, model: PromptEmbedder, as_users_run_it: None) -> None:
    """It was called a text; and 0, [] and {} were taken for no instruction."""
    with pytest.raises(DataError, match="an instruction must be a str, got .* Say in words"):
        model.encode(LEFT, prompt=wrong)
    with pytest.raises(DataError, match="an instruction must be a str"):
        inspect.unwrap(clean_instruction)([])


@pytest.mark.parametrize("wrong", [None, 3, float("nan"), ("a", "b"), {"title": "no text"}])
def test_a_document_without_text_is_refused(wrong: Any, model: PromptEmbedder, as_users_run_it: None) -> None:
    kind = type(wrong).__name__
    with pytest.raises(DataError, match=f"a text must be a str, got {kind}. Convert it, or drop the row"):
        model.encode_document(["a text", wrong])


def test_a_string_is_not_taken_for_a_list_of_letters(model: PromptEmbedder, as_users_run_it: None) -> None:
    """`encode_instructions(texts, "find it")` gave the vectors of seven instructions of one letter."""
    for ask in (
        lambda: model.encode_instructions(LEFT, FIND),
        lambda: model.compile_instructions(FIND),
    ):
        with pytest.raises(DataError, match="instructions must be a list of str, got the str 'find the thing'"):
            ask()
    with pytest.raises(DataError, match="texts must be a list of str, got NoneType"):
        model.encode_instructions(None, [FIND])

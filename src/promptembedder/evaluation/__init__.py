"""How good an encoder is."""

from promptembedder.evaluation.retrieval import RetrievalScore, bm25_score, retrieval_score
from promptembedder.evaluation.similarity import InstructedSimilarityEvaluator, similarity_evaluator

__all__ = ["InstructedSimilarityEvaluator", "RetrievalScore", "bm25_score", "retrieval_score", "similarity_evaluator"]

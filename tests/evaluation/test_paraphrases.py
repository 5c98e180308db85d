"""Other wordings of an instruction."""

import json
from importlib.resources import files

from promptembedder.evaluation import paraphrases_of

STORED = {
    task: tuple(entry["wordings"])
    for entry in json.loads((files("promptembedder.evaluation") / "paraphrases.json").read_text())
    for task in entry["tasks"]
}

LOCAL = (
    *("STSBenchmark", "STS12", "STS13", "Banking77Classification", "AmazonCounterfactualClassification"),
    *("TRECQuestionType", "TRECQuestionTypeFine", "MRPC", "StackOverflowShort", "SciFact", "XQuADen"),
)


def test_each_known_task_has_three_different_wordings() -> None:
    assert set(LOCAL) < set(STORED)
    for wordings in STORED.values():
        assert len({wording.lower() for wording in wordings}) == 3


def test_given_ones_come_first_then_the_packages_own_then_frames_of_the_instruction() -> None:
    assert paraphrases_of("SciFact", "x", ["a", "b"]) == ("a", "b")
    assert paraphrases_of("SciFact", "x") == STORED["SciFact"]
    framed = paraphrases_of("Unheard", "Find the {best} answer.")
    assert len(set(framed)) == 3
    assert all("Find the {best} answer" in wording and "..." not in wording for wording in framed)


def test_versions_and_subsets_share_the_wordings_of_their_task() -> None:
    own = STORED["AmazonCounterfactualClassification"]
    assert paraphrases_of("AmazonCounterfactualClassification (en)", "x") == own
    assert paraphrases_of("Banking77Classification.v2", "x") == STORED["Banking77Classification"]


def test_a_coarse_task_and_a_fine_one_never_share_a_wording() -> None:
    coarse, fine = (set(STORED[name]) for name in ("TRECQuestionType", "TRECQuestionTypeFine"))
    assert not coarse & fine

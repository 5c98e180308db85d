"""Other wordings of an instruction."""

from promptembedder.evaluation import paraphrases, paraphrases_of

LOCAL = (
    *("STSBenchmark", "STS12", "STS13", "Banking77Classification", "AmazonCounterfactualClassification"),
    *("TRECQuestionType", "TRECQuestionTypeFine", "MRPC", "StackOverflowShort", "SciFact", "XQuADen"),
)


def test_each_known_task_has_three_different_wordings() -> None:
    assert set(LOCAL) < set(paraphrases._BY_TASK)
    for wordings in paraphrases._BY_TASK.values():
        assert len({wording.lower() for wording in wordings}) == 3


def test_given_ones_come_first_then_the_packages_own_then_frames_of_the_instruction() -> None:
    assert paraphrases_of("SciFact", "x", ["a", "b"]) == ("a", "b")
    assert paraphrases_of("SciFact", "x") == paraphrases._BY_TASK["SciFact"]
    framed = paraphrases_of("Unheard", "Find the {best} answer.")
    assert len(set(framed)) == 3
    assert all("Find the {best} answer" in wording and "..." not in wording for wording in framed)


def test_versions_and_subsets_share_the_wordings_of_their_task() -> None:
    own = paraphrases._BY_TASK["AmazonCounterfactualClassification"]
    assert paraphrases_of("AmazonCounterfactualClassification (en)", "x") == own
    assert paraphrases_of("Banking77Classification.v2", "x") == paraphrases._BY_TASK["Banking77Classification"]


def test_a_coarse_task_and_a_fine_one_never_share_a_wording() -> None:
    coarse, fine = (set(paraphrases._BY_TASK[name]) for name in ("TRECQuestionType", "TRECQuestionTypeFine"))
    assert not coarse & fine

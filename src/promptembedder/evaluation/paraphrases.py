"""Other wordings of the instructions of known tasks."""

from collections.abc import Sequence

__all__ = ["paraphrases_of"]

_REFRAMED = (
    "{instruction}. Judge by this alone and leave everything else aside",
    "What matters in the text is what this task needs: {instruction}",
    "Represent the text so that the following can be done with it: {instruction}",
)

_SIMILAR = (
    "Find sentences that say the same thing",
    "Compare texts by what they mean, not by the words they use",
    "Which sentences express the same idea?",
)
_INTENT_OF_BANK_CUSTOMER = (
    "What does this bank customer want to get done?",
    "Sort messages to a bank's help desk by the request behind them",
    "Recognise the purpose of a question about online banking",
)
_COUNTERFACTUAL = (
    "Does this product review speak of something that did not happen but might have?",
    "Tell reviews with hypothetical, contrary-to-fact statements from those without",
    "Decide whether a customer's review on Amazon describes an unreal situation",
)
_CLAIM = (
    "Find the paper that confirms or contradicts this statement from science",
    "Which abstract holds evidence for or against the claim?",
    "Search scientific articles for what proves the assertion right or wrong",
)
_QUESTION_TO_PARAGRAPH = (
    "Find the passage that holds the answer to the question",
    "Which paragraph tells what is being asked?",
    "Search for the text from which this question can be answered",
)
_DUPLICATE = (
    "Find other forum questions that ask for the same thing",
    "Which earlier post has the same problem as this one?",
    "Recognise questions that one and the same answer would settle",
)

_BY_TASK: dict[str, tuple[str, ...]] = {
    "STSBenchmark": _SIMILAR,
    "STS12": _SIMILAR,
    "STS13": _SIMILAR,
    "STS14": _SIMILAR,
    "STS15": _SIMILAR,
    "STS16": _SIMILAR,
    "BIOSSES": _SIMILAR,
    "SICK-R": _SIMILAR,
    "Banking77Classification": _INTENT_OF_BANK_CUSTOMER,
    "AmazonCounterfactualClassification": _COUNTERFACTUAL,
    "TRECQuestionType": (
        "Is the answer to this question a person, a place, a number, a thing, a description or an abbreviation?",
        "Group questions by the broad category that their answers belong to",
        "What general kind of reply does the asker expect?",
    ),
    "TRECQuestionTypeFine": (
        "Name the exact sort of thing that would answer the question, such as a date, a city, an animal or a reason",
        "Tell apart questions by the narrow category of their answers",
        "Which specific type of information is the asker looking for?",
    ),
    "MRPC": (
        "Decide whether two sentences are rewordings of each other",
        "Find the sentence that reports the same in other words",
        "Match news sentences that state the same facts",
    ),
    "StackOverflowShort": (
        "Which programming language, framework or tool does the question deal with?",
        "Group the titles of developers' questions by the software they are about",
        "Tell what technical product or language a coder needs help with",
    ),
    "SciFact": _CLAIM,
    "XQuADen": _QUESTION_TO_PARAGRAPH,
    "NQ": _QUESTION_TO_PARAGRAPH,
    "MSMARCO": _QUESTION_TO_PARAGRAPH,
    "NFCorpus": (
        "Find medical texts that bear on the question",
        "Which documents on nutrition and health answer this best?",
        "Search the medical literature for what the reader wants to know",
    ),
    "ArguAna": (
        "Find the argument that contradicts this one",
        "What speaks against the claim made here?",
        "Search for the best reply of the opposing side",
    ),
    "QuoraRetrieval": _DUPLICATE,
    "SprintDuplicateQuestions": _DUPLICATE,
    "ImdbClassification": (
        "Did the reviewer like the film?",
        "Tell favourable film reviews from unfavourable ones",
        "Judge the mood of a movie review: praise or complaint",
    ),
    "EmotionClassification": (
        "How does the writer of this message feel?",
        "Sort short messages by feeling: joy, sadness, anger, fear, love or surprise",
        "Name the emotion that the text expresses",
    ),
    "TwentyNewsgroupsClustering": (
        "Which discussion group would this message be posted in?",
        "Group posts by the subject under discussion",
        "Tell the theme of a newsgroup message",
    ),
}


def paraphrases_of(name: str, instruction: str, given: Sequence[str] = ()) -> tuple[str, ...]:
    """Return other wordings of an instruction: `given`, else those stored for the task's name, else generic ones.

    Args:
        name: Name of the task. mteb's version and subset (`Name.v2`, `Name (en)`) are ignored.
    """
    if given:
        return tuple(given)
    base = name.partition(" (")[0]
    stored = _BY_TASK.get(base) or _BY_TASK.get(base.partition(".")[0])
    return stored or tuple(frame.replace("{instruction}", instruction.rstrip(". ")) for frame in _REFRAMED)

"""Answer questions from a LanceDB table with LangChain, offline.

Run: python examples/rag_langchain_lancedb.py [MODEL].

Needs the extras langchain and search, and a model: `make quickstart` writes runs/quickstart.
"""

import sys
import tempfile

import lancedb
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from notes import NOTES
from smollm2 import answer

from promptembedder.integrations.langchain import PromptEmbedderEmbeddings

QUESTION = "Which function copies a directory tree?"

model = sys.argv[1] if len(sys.argv) > 1 else "runs/quickstart"
embeddings = PromptEmbedderEmbeddings(model, instruction="Given a question, retrieve the sentence that answers it")

with tempfile.TemporaryDirectory() as folder:
    vectors = embeddings.embed_documents(list(NOTES))
    rows = [{"text": text, "vector": vector} for text, vector in zip(NOTES, vectors, strict=True)]
    table = lancedb.connect(folder).create_table("notes", rows)

    def found(question: str) -> list[str]:
        """Return the two nearest notes."""
        query = embeddings.embed_query(question)
        return [row["text"] for row in table.search(query).distance_type("cosine").limit(2).to_list()]

    chain = RunnablePassthrough.assign(found=lambda asked: found(asked["question"])) | RunnablePassthrough.assign(
        answer=RunnableLambda(lambda asked: answer(asked["question"], asked["found"]))
    )
    result = chain.invoke({"question": QUESTION})

print(f"question: {result['question']}")
for text in result["found"]:
    print(f"found:    {text}")
print(f"answer:   {result['answer']}")

"""Answer questions from a LlamaIndex index, offline.

Run: python examples/rag_llama_index.py [MODEL].

Needs the extra llama-index, and a model: `make quickstart` writes runs/quickstart.
"""

import sys

from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode
from notes import NOTES
from smollm2 import answer

from promptembedder.integrations.llama_index import PromptEmbedderEmbedding

QUESTION = "Which function gives the middle value of numbers?"

model = sys.argv[1] if len(sys.argv) > 1 else "runs/quickstart"
embedding = PromptEmbedderEmbedding(model, instruction="Given a question, retrieve the sentence that answers it")
index = VectorStoreIndex([TextNode(text=text) for text in NOTES], embed_model=embedding)
found = [one.get_content() for one in index.as_retriever(similarity_top_k=2).retrieve(QUESTION)]

print(f"question: {QUESTION}")
for text in found:
    print(f"found:    {text}")
print(f"answer:   {answer(QUESTION, found)}")

"""Minimal baseline server: FastAPI around a SentenceTransformer, for comparison in `bench serve`.

python -m benchmarks.serving.plain_server FOLDER PORT DTYPE
"""

import base64
import sys
import threading
from typing import Any

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI
from sentence_transformers import SentenceTransformer

__all__ = ["plain_app"]


def plain_app(model: SentenceTransformer) -> FastAPI:
    """Return an app with `/v1/embeddings` and `/health`. Requests share a model and are encoded one by one."""
    app, one_at_a_time = FastAPI(), threading.Lock()

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/v1/embeddings")
    def embeddings(body: dict[str, Any]) -> dict[str, Any]:
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        with one_at_a_time:
            vectors = model.encode(texts, normalize_embeddings=True)
        coded = [base64.b64encode(np.float32(vector).astype("<f4").tobytes()).decode() for vector in vectors]
        data = [{"object": "embedding", "index": place, "embedding": one} for place, one in enumerate(coded)]
        return {"object": "list", "data": data, "model": body.get("model")}

    return app


if __name__ == "__main__":
    folder, port, dtype = sys.argv[1:]
    served = SentenceTransformer(folder, model_kwargs={"dtype": getattr(torch, dtype)})
    served.encode(["warm up"])
    uvicorn.run(plain_app(served), port=int(port), log_level="error")

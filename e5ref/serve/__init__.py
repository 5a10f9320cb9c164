"""An embedding service: OpenAI's routes and those of text-embeddings-inference, over the pipeline of `encode`."""

"""The project: rooms, documents, set-up, doctor, CUDA, benchmarks, tables of operators and models."""

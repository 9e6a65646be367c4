"""The DVC stages, one module each, and all that uses Ray and MLflow."""

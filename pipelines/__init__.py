"""The DVC stages, one module each, and the door to Ray and MLflow."""

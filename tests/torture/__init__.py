"""The proof that nothing breaks it and nothing is lost; see `__main__`."""

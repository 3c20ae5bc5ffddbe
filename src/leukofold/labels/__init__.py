"""Label analysis: what out-of-fold networks and their embeddings say of the labels, made ready for a haematologist."""

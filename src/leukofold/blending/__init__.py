"""Combining runs: loading them whole, aligning their logits, methods of combination and their honest judgement."""

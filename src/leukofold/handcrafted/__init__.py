"""Handcrafted features of a cell and a support vector machine on them: the classical baseline (Putzu et al. 2014)."""

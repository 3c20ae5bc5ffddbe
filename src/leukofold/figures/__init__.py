"""Figures for people who read cells: plain arrays and tables in, one ``Figure`` out, for screen and paper."""

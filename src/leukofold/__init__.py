"""leukofold: stratified, patient-wise K-fold classification of white blood cells."""

__version__ = "0.1.0"

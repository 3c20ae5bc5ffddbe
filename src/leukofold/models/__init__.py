"""Networks: a timm backbone, a head, and normalisation inside."""

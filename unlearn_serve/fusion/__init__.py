"""Several adapters into one that covers all their deletion requests, in closed form and without data."""

from unlearn_serve.fusion.directories import fuse_dirs
from unlearn_serve.fusion.fuse import METHODS, Fusible, Method, fuse
from unlearn_serve.fusion.grams import GRAMS_NAME, GramFile, SiteGrams, gram_names, write_grams
from unlearn_serve.fusion.regmean import regmean

__all__ = [
    "GRAMS_NAME",
    "METHODS",
    "Fusible",
    "GramFile",
    "Method",
    "SiteGrams",
    "fuse",
    "fuse_dirs",
    "gram_names",
    "regmean",
    "write_grams",
]

"""Several adapters into one that covers all their deletion requests, in closed form and without data."""

from unlearn_serve.fusion.directories import fuse_dirs
from unlearn_serve.fusion.fuse import METHODS, Fusible, Method, fuse
from unlearn_serve.fusion.grams import GRAMS_NAME, GramFile, SiteGrams, gram_names, write_grams
from unlearn_serve.fusion.regmean import PUBLISHED, RegMean, regmean
from unlearn_serve.fusion.sketch import GramSketch, GramSketcher
from unlearn_serve.fusion.sums import SUMS_NAME, SiteSums, SumsFile

__all__ = [
    "GRAMS_NAME",
    "METHODS",
    "PUBLISHED",
    "SUMS_NAME",
    "Fusible",
    "GramFile",
    "GramSketch",
    "GramSketcher",
    "Method",
    "RegMean",
    "SiteGrams",
    "SiteSums",
    "SumsFile",
    "fuse",
    "fuse_dirs",
    "gram_names",
    "regmean",
    "write_grams",
]

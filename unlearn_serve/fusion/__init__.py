"""In closed form, without data: several adapters into one that covers all their requests; one into the base."""

from unlearn_serve.fusion.directories import fuse_dirs
from unlearn_serve.fusion.fuse import METHODS, Fusible, Method, fuse
from unlearn_serve.fusion.grams import GRAMS_NAME, GramFile, SiteGrams, gram_names, write_grams
from unlearn_serve.fusion.merge import fold_into, merge_dirs
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
    "fold_into",
    "fuse",
    "fuse_dirs",
    "gram_names",
    "merge_dirs",
    "regmean",
    "write_grams",
]

"""Experiments of the paper: methods of unlearning beside each other on one task, with one accounting."""

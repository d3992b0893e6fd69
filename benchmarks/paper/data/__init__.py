"""The rows of the experiments: read from a folder of real data sets, or made up in the same files for a quick run."""

"""A server under load for half an hour, with swaps and faults; and a server killed again and again. See __main__.py."""
